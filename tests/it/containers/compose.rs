//! `docker/compose.yaml` conforms to the specification's schema, and everything that it names exists.
//!
//! `compose-spec.json` is the schema of the Compose Specification as its project publishes it
//! (compose-spec/compose-spec, Apache-2.0; commit 170098ba07d9).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use pgsluice::config::{Config, LogFormat};
use pgsluice::pg::conninfo::HostAddress;

use super::{read, repository, yaml};

const COMPOSE: &str = "docker/compose.yaml";

fn compose() -> Value {
    yaml::parse(&read(COMPOSE))
}

fn services(compose: &Value) -> &Map<String, Value> {
    compose["services"].as_object().unwrap()
}

/// Returns the texts of a list; none if it is not a list.
fn texts(list: &Value) -> Vec<&str> {
    list.as_array().map_or(Vec::new(), |list| list.iter().map(|text| text.as_str().unwrap()).collect())
}

fn keys(table: &Value) -> BTreeSet<&str> {
    table.as_object().map_or_else(BTreeSet::new, |table| table.keys().map(String::as_str).collect())
}

/// Returns a service's environment. Compose passes all values as texts.
fn environment(service: &Value) -> BTreeMap<String, String> {
    let entries = service["environment"].as_object().cloned().unwrap_or_default();
    entries
        .into_iter()
        .map(|(name, value)| {
            let Value::String(value) = value else { panic!("{name}: {value} is no text") };
            (name, value)
        })
        .collect()
}

/// Returns `source` and `target` of each of a service's configs.
fn configs(service: &Value) -> Vec<(&str, &str)> {
    let list = service["configs"].as_array().map_or(&[][..], Vec::as_slice);
    list.iter()
        .map(|config| (config["source"].as_str().unwrap(), config["target"].as_str().unwrap()))
        .collect()
}

/// Returns the path in the repository of a file that the Compose file names relative to itself.
fn beside(path: &str) -> String {
    let path = path.strip_prefix("./").unwrap_or_else(|| panic!("{path} is not relative to {COMPOSE}"));
    format!("docker/{path}")
}

#[test]
fn it_is_what_the_specification_calls_a_compose_file() {
    let schema: Value = serde_json::from_str(include_str!("compose-spec.json")).unwrap();
    let mut schemas = boon::Schemas::new();
    let mut compiler = boon::Compiler::new();
    compiler.add_resource("compose-spec.json", schema).unwrap();
    let index = compiler.compile("compose-spec.json", &mut schemas).unwrap();
    let mut compose = compose();
    if let Err(error) = schemas.validate(&compose, index) {
        panic!("{COMPOSE}: {error:#}");
    }
    // The schema detects a misspelt key.
    compose["services"]["pgsluice"]["readonly"] = true.into();
    assert!(schemas.validate(&compose, index).is_err());
}

#[test]
fn what_a_service_needs_is_there() {
    let compose = compose();
    let mut used: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, service) in services(&compose) {
        for secret in texts(&service["secrets"]) {
            used.entry("secrets").or_default().insert(secret);
        }
        used.entry("configs").or_default().extend(configs(service).iter().map(|(source, _)| *source));
        used.entry("networks").or_default().extend(texts(&service["networks"]));
        for mount in texts(&service["volumes"]) {
            let (source, _) = mount.split_once(':').unwrap();
            if source.starts_with('.') {
                assert!(repository(&beside(source)).exists(), "{name} mounts {source}, which is not there");
                assert!(mount.ends_with(":ro"), "{name}: {mount} is not read-only");
            } else {
                used.entry("volumes").or_default().insert(source);
            }
        }
    }
    for kind in ["secrets", "configs", "networks", "volumes"] {
        assert_eq!(used[kind], keys(&compose[kind]), "{kind}: used, and defined");
    }
    for kind in ["secrets", "configs"] {
        for (name, definition) in compose[kind].as_object().unwrap() {
            let path = beside(definition["file"].as_str().unwrap());
            assert!(!read(&path).trim().is_empty(), "{kind} {name}: {path} is empty");
        }
    }
    let described = read("docker/secrets/README.md");
    for name in keys(&compose["secrets"]) {
        assert!(described.contains(&format!("| `{name}` |")), "docker/secrets/README.md: {name} is missing");
    }
}

#[test]
fn whom_a_service_waits_for_can_become_what_it_waits_for() {
    let compose = compose();
    let services = services(&compose);
    for (name, service) in services {
        let Some(needs) = service["depends_on"].as_object() else { continue };
        for (need, how) in needs {
            let needed = services.get(need).unwrap_or_else(|| panic!("{name} depends on {need}"));
            let can = match how["condition"].as_str() {
                // For the built image, the health check is the Dockerfile's.
                Some("service_healthy") => needed["healthcheck"].is_object() || needed["build"].is_object(),
                Some("service_completed_successfully") => needed["restart"] == "no",
                _ => false,
            };
            assert!(can, "{name} depends on {need}: {how}");
        }
    }
    let build = &services["pgsluice"]["build"];
    let context = format!("docker/{}", build["context"].as_str().unwrap());
    assert!(repository(&context).join(build["dockerfile"].as_str().unwrap()).is_file(), "{build}");
}

#[test]
fn every_service_is_hardened_and_pinned() {
    let compose = compose();
    for (name, service) in services(&compose) {
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(service["cap_drop"], serde_json::json!(["ALL"]), "{name}");
        assert_eq!(service["security_opt"], serde_json::json!(["no-new-privileges:true"]), "{name}");
        for port in texts(&service["ports"]) {
            assert!(port.starts_with("127.0.0.1:"), "{name} publishes {port} to everybody");
        }
        let hands_over = name == "prepare-secrets";
        assert_eq!(service["cap_add"].is_array(), hands_over, "{name}");
        assert_eq!(service["user"] == "root", hands_over, "{name}");
        let image = service["image"].as_str().unwrap();
        let tag = image.split_once(':').map_or("", |(_, tag)| tag);
        let versioned = tag.contains(|c: char| c.is_ascii_digit());
        assert!(versioned || service["build"].is_object(), "{name}: {image} is no version");
        for (variable, _) in environment(service) {
            assert!(
                !variable.contains("PASSWORD") || variable.ends_with("_FILE"),
                "{name}: {variable} holds a password"
            );
        }
    }
    assert_eq!(compose["networks"]["databases"]["internal"], true);
}

/// Every `/run/secrets/NAME` in a service's environment, command or files belongs to a secret that is
/// mounted.
#[test]
fn a_secret_is_mounted_where_it_is_read() {
    let compose = compose();
    let mut found = 0;
    for (name, service) in services(&compose) {
        let mounted = texts(&service["secrets"]);
        let mut told: Vec<String> = environment(service).into_values().collect();
        told.extend(configs(service).iter().map(|(source, _)| {
            let file = compose["configs"][source]["file"].as_str().unwrap();
            read(&beside(file))
        }));
        for text in told {
            for rest in text.split("/run/secrets/").skip(1) {
                let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
                assert!(mounted.contains(&&rest[..end]), "{name} reads /run/secrets/{}", &rest[..end]);
                found += 1;
            }
        }
    }
    assert!(found >= 6, "{found} secrets are read");
}

/// The addresses in the configuration files are services on a network of the services that use them.
#[test]
fn addresses_are_services_within_reach() {
    let compose = compose();
    let services = services(&compose);
    let check = |from: &str, to: &str| {
        let to = services.get(to).unwrap_or_else(|| panic!("{from} asks {to}, which is no service"));
        let shared = texts(&services[from]["networks"]);
        let shared = texts(&to["networks"]).iter().any(|network| shared.contains(network));
        assert!(shared, "{from} shares no network with {to}");
    };
    let prometheus = yaml::parse(&read("docker/prometheus.yml"));
    let job = &prometheus["scrape_configs"][0];
    assert_eq!(job["job_name"], "pgsluice", "the alert rules go by this name");
    for target in texts(&job["static_configs"][0]["targets"]) {
        let (host, port) = target.split_once(':').unwrap();
        check("prometheus", host);
        let listen = config().service.listen;
        assert_eq!(port, listen.port().to_string());
    }
    let mounted: Vec<&str> = configs(&services["prometheus"]).into_iter().map(|(_, target)| target).collect();
    for rules in texts(&prometheus["rule_files"]) {
        assert!(mounted.contains(&rules), "{rules} is not mounted");
    }
    let sources = yaml::parse(&read("docker/grafana/provisioning/datasources/prometheus.yaml"));
    let url = sources["datasources"][0]["url"].as_str().unwrap();
    check("grafana", url.strip_prefix("http://").unwrap().split(':').next().unwrap());
    let dashboards = yaml::parse(&read("docker/grafana/provisioning/dashboards/pgsluice.yaml"));
    let path = dashboards["providers"][0]["options"]["path"].as_str().unwrap();
    assert!(configs(&services["grafana"]).iter().any(|(_, target)| target.starts_with(path)), "{path}");

    let config = config();
    let hosts = config.subscriptions.iter().map(|subscription| &subscription.publisher);
    for conninfo in hosts.chain([&config.target.conninfo]) {
        for host in &conninfo.hosts {
            let HostAddress::Tcp { name, .. } = &host.address else { panic!("{host:?}") };
            check("pgsluice", name);
            assert_eq!(host.port, 5432);
        }
    }
}

/// Returns pgsluice's configuration as its container sees it, environment included.
fn config() -> Config {
    let compose = compose();
    let service = &services(&compose)["pgsluice"];
    let (source, target) = configs(service)[0];
    assert_eq!(target, super::image::config_path());
    let file = beside(compose["configs"][source]["file"].as_str().unwrap());
    let environment = environment(service).into_iter();
    Config::load(Some(&repository(&file)), environment).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn pgsluices_configuration_and_environment_are_accepted() {
    let config = config();
    assert!(!config.service.listen.ip().is_loopback(), "nobody outside the container could ask it");
    assert_eq!(config.subscriptions.len(), 1);
    assert_eq!(config.service.log_format, LogFormat::Json, "what the environment says");
    // The password file is created when the containers start; there must be no other warning.
    for warning in &config.warnings {
        assert!(warning.primary.contains("/run/pgsluice/pgpass"), "{warning}");
    }
}

/// Runs promtool on Prometheus' configuration, with the repository's paths in place of the container's.
#[test]
fn prometheus_accepts_its_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prometheus.yml");
    let docker = repository("docker").display().to_string();
    let text = read("docker/prometheus.yml")
        .replace("/etc/prometheus/", &format!("{docker}/"))
        .replace("/run/secrets/", &format!("{docker}/secrets/"));
    std::fs::write(&path, text).unwrap();
    crate::metrics::promtool(&["check", "config", path.to_str().unwrap()], "");
}
