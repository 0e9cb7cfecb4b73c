//! Validates `[[subscriptions]]`: each by itself, then all of them together.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Validator, Word, not_supported_yet};
use crate::config::connect::Called;
use crate::config::keys::CONFLICT_TYPES;
use crate::config::path::KeyPath;
use crate::config::raw::RawSubscription;
use crate::config::{Auto, ConflictPolicies, ConflictPolicy, Origin, Subscription, SynchronousCommit};
use crate::error::Diagnosis;
use crate::pg::conninfo::{Host, Unacknowledged};
use crate::pg::{SlotName, SubscriptionName};

/// A key whose value is a duration within bounds.
struct Bounded {
    min: Duration,
    max: Duration,
    /// The bounds in words.
    range: &'static str,
    /// What to write instead of something that is no duration.
    forms: &'static str,
    /// About the bounds.
    hint: &'static str,
}

/// A shorter interval would flood the log and the target; a longer one is practically "off".
const RETRY_INTERVAL: Bounded = Bounded {
    min: Duration::from_secs(1),
    max: Duration::from_hours(24),
    range: "1 second and 24 hours",
    forms: "write \"off\", \"500ms\", \"5s\", \"2m\" or \"1h\"",
    hint: "\"off\" leaves conflicts to a person",
};

const SHARE_AFTER: Bounded = Bounded {
    min: Duration::from_secs(1),
    max: Duration::from_hours(1),
    range: "1 second and 1 hour",
    forms: "write \"off\", \"30s\" or \"5m\"",
    hint: "\"off\" keeps every subscription where it is",
};

const STALL_TIMEOUT: Bounded = Bounded {
    min: Duration::from_secs(1),
    max: Duration::from_hours(1),
    range: "1 second and 1 hour",
    forms: "write \"5s\", \"30s\" or \"2m\"",
    hint: "so long the publisher's process waits in a write, and can neither end nor give its slot up",
};

const PEER_TIMEOUT: Bounded = Bounded {
    min: Duration::from_secs(4),
    max: Duration::from_hours(1),
    range: "4 seconds and 1 hour",
    forms: "write \"10s\", \"30s\" or \"2m\"",
    hint: "a shorter time would take a busy server for a dead one, and a longer one leaves a dead one unnoticed",
};

/// Smallest limit of a row: smaller ones would be reached by ordinary rows.
const VALUE_BYTES_MIN: i64 = 1 << 20;

/// PostgreSQL itself sends no larger message.
const VALUE_BYTES_MAX: i64 = 1 << 30;

/// By default, a row takes this part of the memory that the process may use, because it is there up to three times.
const VALUE_PART_OF_MEMORY: u64 = 4;

impl Validator<'_> {
    pub(super) fn subscriptions(&mut self, raw: Vec<RawSubscription>) -> Option<Vec<Subscription>> {
        let list = KeyPath::default().key("subscriptions");
        // Names are checked first, so that duplicates are reported even if other values are wrong.
        self.unique_names(&raw, &list);
        let count = raw.len();
        let subscriptions: Vec<_> = raw
            .into_iter()
            .enumerate()
            .filter_map(|(i, raw)| Some((i, self.subscription(raw, &list.index(i))?)))
            .collect();
        self.unique_slots(&subscriptions, &list);
        (subscriptions.len() == count).then(|| subscriptions.into_iter().map(|(_, valid)| valid).collect())
    }

    fn unique_names(&mut self, raw: &[RawSubscription], list: &KeyPath) {
        let mut first = BTreeMap::new();
        for (i, name) in raw.iter().enumerate().filter_map(|(i, raw)| Some((i, raw.name.as_deref()?))) {
            if let Some(earlier) = first.get(name) {
                let primary =
                    format!("\"{}\" is the name of {} already", name.escape_debug(), list.index(*earlier));
                let problem = Diagnosis::new(primary).hint("give each subscription its own name");
                self.problem(&list.index(i).key("name"), problem);
            } else {
                first.insert(name, i);
            }
        }
    }

    /// Checks that no two subscriptions use the same slot of one server. A slot's name is unique in the
    /// whole server, not only in a database.
    fn unique_slots(&mut self, subscriptions: &[(usize, Subscription)], list: &KeyPath) {
        for (at, (i, subscription)) in subscriptions.iter().enumerate() {
            let same = subscriptions[..at].iter().find(|(_, earlier)| {
                earlier.slot == subscription.slot
                    && earlier.name != subscription.name
                    && share_a_server(&earlier.publisher.hosts, &subscription.publisher.hosts)
            });
            if let Some((earlier, _)) = same {
                let path = list.index(*i).key("slot");
                let primary = format!(
                    "{} uses slot \"{}\" of this publisher already",
                    list.index(*earlier),
                    subscription.slot
                );
                self.problem(&path, Diagnosis::new(primary).hint("give each subscription its own slot"));
            }
        }
    }

    fn subscription(&mut self, raw: RawSubscription, path: &KeyPath) -> Option<Subscription> {
        let name = self.name(raw.name.as_deref(), &path.key("name"));
        let slot = self.slot(raw.slot.as_deref(), name.as_ref(), &path.key("slot"));
        let publisher_path = path.key("publisher");
        let hint = "add publisher = \"host=… dbname=… user=…\"";
        let publisher = self.required(raw.publisher, &publisher_path, hint).and_then(|text| {
            let application_name = name.as_ref().map_or("", SubscriptionName::as_str);
            self.connection(&text, &Called::Always(application_name), &publisher_path)
        });
        let publications = self.publications(raw.publications, &path.key("publications"));
        let interval = raw.retry_conflict_interval.as_deref().unwrap_or("off");
        let retry_conflict_interval = self.retry_interval(interval, &path.key("retry_conflict_interval"));
        let binary = self.auto(raw.binary.as_deref(), &path.key("binary"));
        let streaming = self.auto(raw.streaming.as_deref(), &path.key("streaming"));
        let two_phase = raw.two_phase.unwrap_or(false);
        if two_phase {
            let problem = not_supported_yet("true").hint("leave it out, or set it to false");
            self.problem(&path.key("two_phase"), problem);
        }
        let origin = self.word(
            raw.origin.as_deref().unwrap_or("any"),
            &path.key("origin"),
            &[("any", Word::Means(Origin::Any)), ("none", Word::Means(Origin::None))],
        );
        let synchronous_commit = self.word(
            raw.synchronous_commit.as_deref().unwrap_or("on"),
            &path.key("synchronous_commit"),
            &SynchronousCommit::ALL.map(|setting| (setting.as_str(), Word::Means(setting))),
        );
        let timeout = raw.stall_timeout.as_deref().unwrap_or("10s");
        let stall_timeout = self.duration(timeout, &path.key("stall_timeout"), &STALL_TIMEOUT);
        let timeout = raw.peer_timeout.as_deref().unwrap_or("30s");
        let peer_timeout = self.duration(timeout, &path.key("peer_timeout"), &PEER_TIMEOUT);
        let max_value_bytes = self.value_bytes(raw.max_value_bytes, &path.key("max_value_bytes"));
        let conflict_defaults = self.policies(&raw.conflict_defaults, &path.key("conflict_defaults"));
        let tables = self.tables(raw.tables, &path.key("tables"));
        Some(Subscription {
            name: name?,
            publisher: publisher?.noticing_within(peer_timeout?, Unacknowledged::Bounded),
            publications: publications?,
            slot: slot?,
            create_slot: raw.create_slot.unwrap_or(true),
            copy_data: raw.copy_data.unwrap_or(true),
            enabled: raw.enabled.unwrap_or(true),
            auto_refresh: raw.auto_refresh.unwrap_or(true),
            retry_conflict_interval: retry_conflict_interval?,
            binary: binary?,
            streaming: streaming?,
            two_phase,
            origin: origin?,
            synchronous_commit: synchronous_commit?,
            stall_timeout: stall_timeout?,
            peer_timeout: peer_timeout?,
            max_value_bytes: max_value_bytes?,
            conflict_defaults: conflict_defaults?,
            tables: tables?,
        })
    }

    fn name(&mut self, name: Option<&str>, path: &KeyPath) -> Option<SubscriptionName> {
        let name = self.required(name, path, "add name = \"…\"")?;
        name.parse().map_err(|error| self.problem(path, Diagnosis::new(format!("{error}")))).ok()
    }

    fn slot(
        &mut self,
        slot: Option<&str>,
        name: Option<&SubscriptionName>,
        path: &KeyPath,
    ) -> Option<SlotName> {
        if let Some(slot) = slot {
            return slot.parse().map_err(|error| self.problem(path, Diagnosis::new(format!("{error}")))).ok();
        }
        // There is no default if the name is missing or the slot's value was discarded.
        let name = name.filter(|_| !self.report.is_discarded(path))?;
        let by_default = name.as_str().parse().ok();
        if by_default.is_none() {
            let problem = Diagnosis::new("the key is missing")
                .detail("the subscription's name, which would be the default, is not a slot's name")
                .hint("name the slot: 1 to 63 lower-case letters, digits and underscores");
            self.problem(path, problem);
        }
        by_default
    }

    fn publications(&mut self, publications: Option<Vec<String>>, path: &KeyPath) -> Option<Vec<String>> {
        let hint = "add publications = [\"…\"]";
        let publications = self.required(publications, path, hint)?;
        if publications.is_empty() {
            self.problem(path, Diagnosis::new("the list is empty").hint(hint));
            return None;
        }
        let mut valid = true;
        for (i, name) in publications.iter().enumerate() {
            valid &= self.catalog_name(name, &path.index(i));
            if publications[..i].contains(name) {
                let primary = format!("\"{}\" is in the list already", name.escape_debug());
                self.problem(&path.index(i), Diagnosis::new(primary));
            }
        }
        valid.then_some(publications)
    }

    fn value_bytes(&mut self, bytes: Option<i64>, path: &KeyPath) -> Option<usize> {
        let bytes = bytes.unwrap_or_else(|| value_bytes_default(self.surroundings.memory_bytes));
        if !(VALUE_BYTES_MIN..=VALUE_BYTES_MAX).contains(&bytes) {
            let primary = format!("{bytes} is not between {VALUE_BYTES_MIN} and {VALUE_BYTES_MAX}");
            self.problem(path, Diagnosis::new(primary).hint("give bytes: 268435456 is 256 MiB"));
            return None;
        }
        usize::try_from(bytes).ok()
    }

    fn auto(&mut self, value: Option<&str>, path: &KeyPath) -> Option<Auto> {
        let words = [
            ("auto", Word::Means(Auto::Auto)),
            ("on", Word::Means(Auto::On)),
            ("off", Word::Means(Auto::Off)),
        ];
        self.word(value.unwrap_or("auto"), path, &words)
    }

    /// Reads "off" or a duration. The outer `Option` is `None` after a problem.
    #[expect(clippy::option_option, reason = "None reported, Some(None) off, as everywhere in this module")]
    fn retry_interval(&mut self, text: &str, path: &KeyPath) -> Option<Option<Duration>> {
        if text == "off" {
            return Some(None);
        }
        self.duration(text, path, &RETRY_INTERVAL).map(Some)
    }

    /// As [`Self::retry_interval`], of `service.share_after`.
    #[expect(clippy::option_option, reason = "None reported, Some(None) off, as everywhere in this module")]
    pub(super) fn share_after(&mut self, text: Option<&str>, path: &KeyPath) -> Option<Option<Duration>> {
        match text.unwrap_or("30s") {
            "off" => Some(None),
            text => self.duration(text, path, &SHARE_AFTER).map(Some),
        }
    }

    fn duration(&mut self, text: &str, path: &KeyPath, bounded: &Bounded) -> Option<Duration> {
        let Bounded { min, max, range, forms, hint } = *bounded;
        let problem = match duration(text) {
            None => Diagnosis::new(format!("\"{}\" is not a duration", text.escape_debug())).hint(forms),
            Some(found) if found < min || found > max => {
                Diagnosis::new(format!("\"{text}\" is not between {range}")).hint(hint)
            }
            found => return found,
        };
        self.problem(path, problem);
        None
    }

    /// Reads policies. The keys were checked before, so each one is a conflict type.
    pub(super) fn policies(
        &mut self,
        raw: &BTreeMap<String, String>,
        path: &KeyPath,
    ) -> Option<ConflictPolicies> {
        let words: [(&str, Word<ConflictPolicy>); 4] = [
            ("pause", Word::Means(ConflictPolicy::Pause)),
            ("apply_remote", Word::NotYet),
            ("keep_local", Word::NotYet),
            ("last_update_wins", Word::NotYet),
        ];
        let mut policies = Some(BTreeMap::new());
        for kind in CONFLICT_TYPES {
            let Some(word) = raw.get(kind.name) else { continue };
            let policy = self.word(word, &path.key(kind.name), &words);
            policies = policies.zip(policy).map(|(mut policies, policy)| {
                policies.insert(kind.name, policy);
                policies
            });
        }
        policies.map(ConflictPolicies)
    }
}

fn share_a_server(a: &[Host], b: &[Host]) -> bool {
    a.iter().any(|host| b.iter().any(|other| other.address == host.address && other.port == host.port))
}

/// Reads a whole number with a unit: ms, s, m or h.
fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let number: u64 = number.parse().ok()?;
    let milliseconds: u64 = match unit.trim_start() {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        _ => return None,
    };
    number.checked_mul(milliseconds).map(Duration::from_millis)
}

fn value_bytes_default(memory_bytes: Option<u64>) -> i64 {
    let fits = memory_bytes.and_then(|bytes| i64::try_from(bytes / VALUE_PART_OF_MEMORY).ok());
    fits.map_or(VALUE_BYTES_MAX, |bytes| bytes.clamp(VALUE_BYTES_MIN, VALUE_BYTES_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_a_number_and_a_unit() {
        let check = |text: &str, milliseconds: Option<u64>| {
            assert_eq!(duration(text), milliseconds.map(Duration::from_millis), "{text}");
        };
        check("500ms", Some(500));
        check("5s", Some(5000));
        check("2 m", Some(120_000));
        check("2min", Some(120_000));
        check("1h", Some(3_600_000));
        for text in
            ["", "5", "s", "-5s", "5.5s", "5 s ", "5d", "99999999999999999999s", "18446744073709551615h"]
        {
            check(text, None);
        }
    }

    #[test]
    fn by_default_rows_are_taken_that_fit_into_memory() {
        for (memory, expected) in [
            (None, VALUE_BYTES_MAX),
            (Some(u64::MAX), VALUE_BYTES_MAX),
            (Some(8 << 30), VALUE_BYTES_MAX),
            (Some(1 << 30), 256 << 20),
            (Some(1 << 20), VALUE_BYTES_MIN),
        ] {
            assert_eq!(value_bytes_default(memory), expected, "{memory:?}");
        }
    }
}
