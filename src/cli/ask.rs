//! Records a command in the target and waits for the running service to answer it.

use std::time::Duration;

use serde_json::Value;

use crate::error::{Diagnosis, Exit, Failure};
use crate::store::{Answer, Outcome, Store, Verb};

use super::{context, output};

/// Longest wait for the service's answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How the service answered a command.
#[derive(Debug, PartialEq, Eq)]
enum Reply {
    Answered(Answer),
    /// A service runs the subscription but has not answered in time.
    Silent,
    /// No service runs the subscription; the command stays recorded.
    NoService,
}

/// Records the command, waits for the answer if a service runs the subscription, and prints the answer.
pub(super) async fn ask(store: &Store, name: &str, verb: Verb, args: &Value) -> Result<Exit, Failure> {
    let served = store.is_owned(name).await?;
    let id = store.submit(name, verb, args, &context::who()).await?;
    let reply = if served {
        store.wait_answer(id, PATIENCE).await?.map_or(Reply::Silent, Reply::Answered)
    } else {
        Reply::NoService
    };
    let text = render(name, verb, reply)?;
    output::print(&text)?;
    Ok(Exit::Fine)
}

fn render(name: &str, verb: Verb, reply: Reply) -> Result<String, Failure> {
    match reply {
        Reply::Answered(Answer { outcome: Outcome::Done, text }) => Ok(format!("{name}: {text}\n")),
        Reply::Answered(Answer { outcome: Outcome::Refused, text }) => Err(Failure::new(Exit::No, text)),
        Reply::NoService => Ok(format!(
            "{name}: {verb} is recorded; no service runs the subscription now, it takes effect when pgsluice runs\n"
        )),
        Reply::Silent => {
            let diagnosis = Diagnosis::new(format!("the service has not answered the {verb} within 10 s"))
                .detail("the wish is recorded and will be carried out")
                .hint(format!("\"pgsluice status {name}\" shows whether it was"));
            Err(Failure::new(Exit::No, diagnosis))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_told() {
        let check = |verb, reply| match render("my_subscription", verb, reply) {
            Ok(text) => text,
            Err(failure) => format!("{:?} {failure}", failure.exit),
        };
        insta::assert_snapshot!(
            check(Verb::Pause, Reply::Answered(Answer::done("paused at 0/16B3748"))),
            @"my_subscription: paused at 0/16B3748"
        );
        insta::assert_snapshot!(
            check(Verb::Pause, Reply::NoService),
            @"my_subscription: pause is recorded; no service runs the subscription now, it takes effect when pgsluice runs"
        );
        insta::assert_snapshot!(check(Verb::Resume, Reply::Silent), @r#"
        No the service has not answered the resume within 10 s
          detail: the wish is recorded and will be carried out
          hint: "pgsluice status my_subscription" shows whether it was
        "#);
        let refusal = Answer::refused(Diagnosis::new("it is disabled"));
        insta::assert_snapshot!(check(Verb::Resume, Reply::Answered(refusal)), @"No it is disabled");
    }
}
