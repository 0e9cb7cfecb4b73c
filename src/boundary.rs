//! Durability boundaries: the places where something becomes durable on a server, and where tests break the
//! program.
//!
//! ```text
//! before ──▶ the deed (COMMIT, CREATE_REPLICATION_SLOT…) ──▶ after ──▶ its answer
//!   │ crash: nothing is done                                  │ crash: done, and nobody knows
//!   │ lost:  never sent, "the connection was lost"            │ lost:  done, "the connection was lost"
//! ```
//! `deed!` marks one. At a place that a test has armed, `crash` ends the process at once, as a power cut
//! would, and `lost` gives the caller the error that a lost connection gives.
//!
//! # How a test arms a place
//! `FAILPOINTS='copy::commit::after=1*return(lost)'`, in the environment of the process: the boundary's name,
//! `before` or `after`, how often, `crash` or `lost`. Several are separated by `;`.
//!
//! # Why a release has none of it
//! The places are `fail`'s failpoints, which exist only with its feature `failpoints`. Only the
//! dev-dependency asks for that, so Cargo enables it for the executable that tests run, and not for
//! `cargo build`. Without it the macros leave the deed alone. scripts/test checks this.
//!
//! # What it does not do
//! It decides nothing, and no test outside of this crate can change what a deed does.

use std::io::Write as _;

/// Does `$deed` (an expression with a `Result`, which may await) as the durability boundary `$name`. `$lost`
/// is the `Result` of a deed whose connection was lost; it is evaluated only if a test asks for it.
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

/// Whether the connection counts as lost at this place. Does not return if the process is to crash here.
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

/// Keeps the places armed; they are disarmed when it is dropped.
pub(crate) struct Armed(#[expect(dead_code, reason = "held for its Drop")] fail::FailScenario<'static>);

/// Arms what the environment names, in a build for tests; none in any other.
pub(crate) fn arm() -> Option<Armed> {
    fail::has_failpoints().then(|| Armed(fail::FailScenario::setup()))
}

/// What an armed place does: true if the connection counts as lost.
///
/// Public because only the macros use it, and in a release they do not.
#[must_use]
pub fn act(place: &str, action: Option<&str>) -> bool {
    // Not a log line: commands have no log.
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
