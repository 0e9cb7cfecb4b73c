//! Runs pgsluice's command line as a user does.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;

/// Longest time for any command except `run` and `status --watch`.
const COMMAND_PATIENCE: Duration = Duration::from_mins(1);

/// The result of one call.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// Returns the JSON document on stdout.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("stdout is not one JSON document ({error}): {self:?}"))
    }

    /// Checks the exit code and returns the outcome.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code, expected on the right; {self:#?}");
        self
    }
}

/// Returns the executable under test without the caller's environment settings.
pub(crate) fn executable() -> std::process::Command {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_pgsluice"));
    for (name, _) in std::env::vars_os() {
        let foreign = name.to_str().is_some_and(|name| name.starts_with("PG"));
        if foreign {
            command.env_remove(&name);
        }
    }
    command.env("NO_COLOR", "1");
    command
}

/// Runs `pgsluice --config FILE ARGUMENTS` to its end.
pub(crate) async fn run(config: &Path, arguments: &[&str]) -> Outcome {
    let mut command = Command::from(executable());
    command.arg("--config").arg(config).args(arguments).kill_on_drop(true);
    let output = tokio::time::timeout(COMMAND_PATIENCE, command.output()).await;
    let output =
        output.unwrap_or_else(|_| panic!("pgsluice {arguments:?} has not ended in {COMMAND_PATIENCE:?}"));
    let output = output.unwrap_or_else(|error| panic!("pgsluice could not be run: {error}"));
    Outcome {
        code: output.status.code().unwrap_or_else(|| panic!("pgsluice {arguments:?} was killed: {output:?}")),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// One subscription of `status --json`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StateView {
    pub(crate) state: String,
    pub(crate) reason: Option<String>,
    /// The whole subscription.
    pub(crate) json: Value,
}

impl StateView {
    /// Finds the subscription `name` in a `status --json` document.
    pub(crate) fn of(document: &Value, name: &str) -> Option<Self> {
        let subscriptions = document["subscriptions"].as_array()?;
        let json = subscriptions.iter().find(|subscription| subscription["name"] == name)?.clone();
        let text = |key: &str| json[key].as_str().map(str::to_owned);
        Some(Self { state: text("state")?, reason: text("reason"), json })
    }

    /// Returns the number of the conflict that it waits for, as the command line takes it.
    pub(crate) fn conflict_id(&self) -> Option<String> {
        match &self.json["conflict_id"] {
            Value::String(id) => Some(id.clone()),
            Value::Number(id) => Some(id.to_string()),
            _ => None,
        }
    }

    /// Returns `detail` and `hint`, for assertions on what an operator reads.
    pub(crate) fn told(&self) -> String {
        let text = |key: &str| self.json[key].as_str().unwrap_or_default().to_owned();
        format!("{}\n{}", text("detail"), text("hint"))
    }
}

#[test]
fn a_subscription_is_found_by_name() {
    let document = serde_json::json!({ "subscriptions": [
        { "name": "other", "state": "streaming" },
        { "name": "mine", "state": "paused", "reason": "conflict", "conflict_id": 7, "hint": "fix it" },
    ]});
    let view = StateView::of(&document, "mine").unwrap();
    assert_eq!((view.state.as_str(), view.reason.as_deref()), ("paused", Some("conflict")));
    assert_eq!(view.conflict_id().as_deref(), Some("7"));
    assert!(view.told().contains("fix it"));
    assert_eq!(StateView::of(&document, "none"), None);
}
