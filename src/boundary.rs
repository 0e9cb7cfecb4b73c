//! Durability boundaries: the places where something becomes durable on a server. Tests let the program fail
//! there.
//!
//! ```text
//! before ──▶ the deed (COMMIT, CREATE_REPLICATION_SLOT…) ──▶ after ──▶ its answer
//!   │ crash: it is not done                                   │ crash: it is done, its answer is not processed
//!   │ lost:  it is not sent, "the connection was lost"        │ lost:  it is done, "the connection was lost"
//! ```
//! `deed!` marks a boundary; the deed is the request that makes something durable. At a place that a test has
//! armed, `crash` ends the process at once, and `lost` returns the error of a lost connection to the caller.
//!
//! # How a test arms a place
//! `FAILPOINTS='copy::commit::after=1*return(lost)'`, in the environment of the process: the boundary's name,
//! `before` or `after`, how often, `crash` or `lost`. Several are separated by `;`.
//!
//! # Why a release has no failpoints
//! The places are failpoints of the crate `fail`, which exist only with its feature `failpoints`. Only the
//! dev-dependency enables that, so Cargo enables it for the executable that tests run, and not for `cargo
//! build`. Without it, the macros only run the deed. scripts/test checks this.

use std::io::Write as _;

/// Runs `$deed` (an expression with a `Result`, which may await) as the durability boundary `$name`. `$lost`
/// is the `Result` after a lost connection; it is evaluated only if a test has armed the place with `lost`.
macro_rules! deed {
    ($name:literal, $deed:expr, $lost:expr) => {{
        if $crate::boundary::is_lost!($name, "::before") {
            $lost
        } else {
            let answer = $deed;
            if $crate::boundary::is_lost!($name, "::after") { $lost } else { answer }
        }
    }};
}

/// Whether the connection counts as lost at this place. Does not return if a test has armed the place with
/// `crash`.
macro_rules! is_lost {
    ($name:literal, $at:literal) => {{
        let reached = || -> bool {
            ::fail::fail_point!(concat!($name, $at), |action| $crate::boundary::act(
                concat!($name, $at),
                action.as_deref()
            ));
            false
        };
        reached()
    }};
}

pub(crate) use deed;
pub(crate) use is_lost;

/// Keeps the places armed until it is dropped.
pub(crate) struct Armed(#[expect(dead_code, reason = "held for its Drop")] fail::FailScenario<'static>);

/// Arms the places that the environment names, in a build for tests; returns none in any other build.
pub(crate) fn arm() -> Option<Armed> {
    fail::has_failpoints().then(|| Armed(fail::FailScenario::setup()))
}

/// Carries out the action of an armed place. Returns true if the connection counts as lost.
///
/// It is public because otherwise it would be unused in a release, where the macros do not call it.
#[must_use]
pub fn act(place: &str, action: Option<&str>) -> bool {
    // It is not a log line, because commands of the command line have no log.
    let _ = writeln!(std::io::stderr(), "boundary {place}: {}", action.unwrap_or("nothing"));
    match action {
        Some("crash") => std::process::abort(),
        Some("lost") => true,
        Some(_) | None => false,
    }
}

#[cfg(test)]
mod tests {
    fn write(written: &mut u32) -> Result<(), &'static str> {
        deed!(
            "boundary::tests",
            {
                *written += 1;
                Ok(())
            },
            Err("lost")
        )
    }

    #[test]
    fn an_answer_is_lost_before_or_after_the_deed() {
        let scenario = fail::FailScenario::setup();
        let mut written = 0;
        assert_eq!((write(&mut written), written), (Ok(()), 1));
        fail::cfg("boundary::tests::before", "1*return(lost)").expect("an action");
        assert_eq!((write(&mut written), written), (Err("lost"), 1));
        fail::cfg("boundary::tests::after", "1*return(lost)").expect("an action");
        assert_eq!((write(&mut written), written), (Err("lost"), 2));
        assert_eq!((write(&mut written), written), (Ok(()), 3));
        scenario.teardown();
    }

    #[test]
    fn tests_have_failpoints() {
        assert!(fail::has_failpoints());
    }
}
