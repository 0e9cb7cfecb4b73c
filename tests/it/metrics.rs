//! `/metrics` under load, checked by Prometheus' own tool if it is installed, and the rules and
//! dashboard of docker/.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use pgsluice::telemetry::names;

use crate::support::http::get;
use crate::support::service::Service;
use crate::support::wait::until;
use crate::support::world::World;

const RULES: &str = "docker/prometheus-rules.yaml";
const DASHBOARD: &str = "docker/grafana-dashboard.json";

/// Runs promtool. If it is not installed, says so and lets the test go on.
pub(crate) fn promtool(arguments: &[&str], input: &str) {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut process = match spawned {
        Ok(process) => process,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!(
                "NOT CHECKED: promtool is missing (Debian's package \"prometheus\" has it): {arguments:?}"
            );
            return;
        }
        Err(error) => panic!("promtool could not be run: {error}"),
    };
    process.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = process.wait_with_output().unwrap();
    let told =
        [output.stdout, output.stderr].map(|told| String::from_utf8_lossy(&told).into_owned()).concat();
    assert!(output.status.success(), "promtool {arguments:?}: {told}\n{input}");
}

/// One scrape: values by series (name with labels).
#[derive(Debug, Clone)]
struct Scrape {
    text: String,
    series: BTreeMap<String, f64>,
}

impl Scrape {
    async fn of(service: &Service) -> Self {
        let answer = get(service.http_port, "/metrics").await.unwrap().expect(200);
        assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        let lines = answer.body.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let series = lines
            .map(|line| line.rsplit_once(' ').unwrap())
            .map(|(series, value)| (series.to_owned(), value.parse().unwrap()))
            .collect();
        Self { text: answer.body, series }
    }

    /// Returns the value of `name{subscription="…",more}`.
    #[track_caller]
    fn value(&self, name: &str, subscription: &str, more: &str) -> f64 {
        let series = format!("{name}{{subscription=\"{subscription}\"{more}}}");
        *self.series.get(&series).unwrap_or_else(|| panic!("no {series} in\n{}", self.text))
    }
}

#[tokio::test]
async fn a_scrape_under_load_is_sound_and_true() {
    const ROWS: u64 = 20_000;
    let world = World::builder()
        .both_sql("CREATE TABLE widgets (id int PRIMARY KEY, name text)")
        .publisher_sql(
            "INSERT INTO widgets SELECT n, 'copied' FROM generate_series(1, 1000) n; ANALYZE widgets",
        )
        .start()
        .await;
    let service = world.run();
    let name = world.subscription.as_str();
    world.wait_state("streaming").await;
    let before = Scrape::of(&service).await;
    // Every series exists from the start with 0, so that the first increase is visible.
    assert!(before.value("pgsluice_conflicts_total", name, ",type=\"insert_exists\"").abs() < f64::EPSILON);

    let load = async {
        for part in 0..20 {
            let first = 10_000 + part * ROWS / 20;
            let sql = format!(
                "INSERT INTO widgets SELECT n, 'loaded' FROM generate_series({first}, {first} + {ROWS} / 20 - 1) n"
            );
            world.publisher.exec(sql).await;
        }
        world.publisher.exec("UPDATE widgets SET name = 'changed' WHERE id <= 10").await;
        world.publisher.exec("DELETE FROM widgets WHERE id <= 5").await;
    };
    let scrapes = async {
        // Under load, counters only grow.
        let mut last = before.clone();
        loop {
            let scrape = Scrape::of(&service).await;
            for (series, value) in last.series.iter().filter(|(series, _)| series.contains("_total{")) {
                assert!(scrape.series[series] >= *value, "{series} fell from {value}");
            }
            // Several counters belong to one event; a scrape may come between their updates.
            let deleted = scrape.value("pgsluice_applied_rows_total", name, ",operation=\"delete\"");
            if deleted > 4.5 {
                let batches = scrape.value("pgsluice_batches_total", name, "");
                let timed = scrape.value("pgsluice_apply_duration_seconds_count", name, "");
                if (batches - timed).abs() < 0.5 {
                    return scrape;
                }
            }
            last = scrape;
            tokio::task::yield_now().await;
        }
    };
    let both = async { tokio::join!(load, scrapes) };
    let ((), scrape) = tokio::time::timeout(std::time::Duration::from_mins(1), both).await.unwrap();

    let count = |metric: &str, more: &str| scrape.value(metric, name, more);
    for direction in ["received", "applied"] {
        for (operation, expected) in
            [("insert", 20_000.0), ("update", 10.0), ("delete", 5.0), ("truncate", 0.0)]
        {
            let found =
                count(&format!("pgsluice_{direction}_rows_total"), &format!(",operation=\"{operation}\""));
            assert!((found - expected).abs() < 0.5, "{direction} {operation}: {found}");
        }
        let transactions = count(&format!("pgsluice_{direction}_transactions_total"), "");
        assert!(transactions >= 22.0, "{direction}: {transactions} transactions");
    }
    let batches = count("pgsluice_batches_total", "");
    assert!((count("pgsluice_batch_rows_sum", "") - 20_015.0).abs() < 0.5, "{}", scrape.text);
    assert!((count("pgsluice_batch_rows_count", "") - batches).abs() < 0.5, "{}", scrape.text);
    assert!((count("pgsluice_apply_duration_seconds_count", "") - batches).abs() < 0.5, "{}", scrape.text);
    assert!((count("pgsluice_state", ",state=\"streaming\"") - 1.0).abs() < f64::EPSILON, "{}", scrape.text);
    assert!(count("pgsluice_state", ",state=\"paused\"").abs() < f64::EPSILON, "{}", scrape.text);
    promtool(&["check", "metrics"], &scrape.text);

    // The monitor's values appear without a request.
    until("positions, lag and slot are known", async || {
        let scrape = Scrape::of(&service).await;
        let one = format!("subscription=\"{name}\"");
        let known = ["pgsluice_lag_bytes", "pgsluice_lag_seconds", "pgsluice_slot_retained_bytes"]
            .iter()
            .all(|metric| scrape.series.contains_key(&format!("{metric}{{{one}}}")));
        let up = scrape.series.get(&format!("pgsluice_target_up{{{one}}}")) == Some(&1.0);
        if known && up { Ok(()) } else { Err(scrape.text) }
    })
    .await;

    // Every series belongs to a described metric, and every described metric has its help text.
    for series in scrape.series.keys() {
        assert!(is_described(series.split('{').next().unwrap()), "{series}");
    }
    for metric in names::ALL {
        if scrape.series.keys().any(|series| base(series.split('{').next().unwrap()) == metric.name) {
            assert!(
                scrape.text.contains(&format!("# HELP {} {}", metric.name, metric.help)),
                "{}",
                metric.name
            );
        }
    }
    conflicts_and_reconnects_are_counted(&world, &service).await;
    assert_eq!(service.sigterm().await, 0);
}

async fn conflicts_and_reconnects_are_counted(world: &World, service: &Service) {
    let name = world.subscription.as_str();
    let reconnects = Scrape::of(service).await.value("pgsluice_reconnects_total", name, "");
    world
        .publisher
        .exec("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
        .await;
    until("the reconnect is counted", async || {
        let now = Scrape::of(service).await.value("pgsluice_reconnects_total", name, "");
        if now > reconnects { Ok(()) } else { Err(format!("{now}")) }
    })
    .await;
    world.wait_state("streaming").await;
    world.target.exec("INSERT INTO widgets VALUES (5000, 'in the way')").await;
    world.publisher.exec("INSERT INTO widgets VALUES (5000, 'incoming')").await;
    world.wait_paused("conflict").await;
    let scrape = Scrape::of(service).await;
    let conflicts = scrape.value("pgsluice_conflicts_total", name, ",type=\"insert_exists\"");
    assert!((conflicts - 1.0).abs() < f64::EPSILON, "{conflicts}");
    assert!((scrape.value("pgsluice_state", name, ",state=\"paused\"") - 1.0).abs() < f64::EPSILON);
    promtool(&["check", "metrics"], &scrape.text);
}

/// Returns the metric of a series; the parts of a histogram belong to the histogram.
fn base(series: &str) -> &str {
    let histogram = |name: &&str| {
        names::ALL.iter().any(|metric| metric.kind == names::Kind::Histogram && metric.name == *name)
    };
    ["_bucket", "_sum", "_count"]
        .iter()
        .find_map(|part| series.strip_suffix(part).filter(histogram))
        .unwrap_or(series)
}

fn is_described(series: &str) -> bool {
    names::ALL.iter().any(|metric| metric.name == base(series))
}

/// Returns the names of pgsluice's metrics in a text.
fn named_in(text: &str) -> Vec<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("pgsluice_")).collect()
}

#[test]
fn rules_and_dashboard_name_metrics_that_exist() {
    for path in [RULES, DASHBOARD] {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
        let found = named_in(&text);
        assert!(found.len() > 10, "{path} names hardly any metric");
        for name in found {
            assert!(is_described(name), "{path}: there is no {name}");
        }
    }
}

#[test]
fn every_metric_of_interest_is_on_the_dashboard() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(DASHBOARD)).unwrap();
    let _: serde_json::Value = serde_json::from_str(&text).unwrap();
    let shown: Vec<&str> = named_in(&text).into_iter().map(base).collect();
    // The dashboard shows the lag instead of absolute positions.
    for metric in names::ALL.iter().filter(|metric| metric.name != names::POSITION_BYTES) {
        assert!(shown.contains(&metric.name), "{} is not on the dashboard", metric.name);
    }
}

#[test]
fn the_alert_rules_are_sound() {
    promtool(&["check", "rules", RULES], "");
}
