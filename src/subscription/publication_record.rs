//! Which publications the stream is asked for, by what is known of their past. Pure.
//!
//! Before version 18, a walsender fails when it decodes a change of a moment at which a publication that it was
//! asked for did not exist. From 18 on, it warns and goes on without that publication. So a publication is asked for
//! until the stream has passed the position at which it was first missed, and again from the position at which it was
//! first seen. In between nobody knows, and the walsender's answer decides.

use serde::{Deserialize, Serialize};

use crate::pg::Lsn;

/// From this version on, the walsender passes over a publication that does not exist.
const TOLERATED_SINCE: u32 = 180_000;

/// What is known of a publication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicationRecord {
    pub name: String,
    /// None if it has never been seen.
    pub oid: Option<u32>,
    /// The transaction that wrote its row.
    pub version: String,
    /// It has existed under this name since this position at the latest; none if it may always have.
    pub since: Option<Lsn>,
    /// It did not exist, or was not asked for any more, from this position on at the latest.
    pub until: Option<Lsn>,
    /// It existed when it was recorded, and the stream goes on from this position without it.
    #[serde(default)]
    pub left_out: Option<Lsn>,
}

/// A publication at a look: its OID, name and version.
pub type Sight<'a> = (u32, &'a str, &'a str);

/// Publications that may have been missing in the stream since the last look, although they exist.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unsent {
    pub names: Vec<String>,
    /// Where that began; none if there are none.
    pub from: Option<Lsn>,
}

impl Unsent {
    /// The position up to which the publications are `proven` to be as recorded, as far as they were sent.
    #[must_use]
    pub fn bound(&self, proven: Option<Lsn>) -> Option<Lsn> {
        proven.map(|proven| self.from.map_or(proven, |from| proven.min(from)))
    }
}

/// The configured publications that the stream is not asked for any more at the recorded position, because they do not exist.
#[must_use]
pub fn unasked(
    records: &[PublicationRecord],
    configured: &[String],
    server_version_num: u32,
    applied: Option<Lsn>,
) -> Vec<String> {
    let is_passed = |record: &&PublicationRecord| record.until.is_some_and(|until| applied >= Some(until));
    let missing = records.iter().filter(|record| configured.contains(&record.name)).filter(is_passed);
    let is_tolerated = server_version_num >= TOLERATED_SINCE;
    missing.filter(|_| !is_tolerated).map(|record| record.name.clone()).collect()
}

/// Finds the publications without which the stream has gone on up to the recorded position, or is `refused` there.
#[must_use]
pub fn unsent(recorded: &[PublicationRecord], applied: Option<Lsn>, refused: &[String]) -> Unsent {
    let went_on = |record: &&PublicationRecord| record.left_out.is_some_and(|from| applied > Some(from));
    let left_out: Vec<&PublicationRecord> = recorded.iter().filter(went_on).collect();
    let names = refused.iter().chain(left_out.iter().map(|record| &record.name)).cloned().collect();
    let here = applied.filter(|_| !refused.is_empty());
    Unsent { names, from: left_out.iter().filter_map(|record| record.left_out).chain(here).min() }
}

/// The record after a look that ended at `end`. What the stream has passed is forgotten. `refused` are those that the
/// walsender has found missing at the recorded position: a transaction that had begun before one was made may commit
/// long after that was seen, so that only the look proves that it exists from there on.
#[must_use]
pub fn update(
    recorded: &[PublicationRecord],
    configured: &[String],
    seen: &[Sight<'_>],
    end: Lsn,
    applied: Option<Lsn>,
    refused: &[String],
    server_version_num: u32,
) -> Vec<PublicationRecord> {
    let mut records: Vec<PublicationRecord> = Vec::new();
    for name in configured {
        if records.iter().any(|record| record.name == *name) {
            continue;
        }
        let known = recorded.iter().find(|record| record.name == *name);
        let sight = seen.iter().find(|sight| sight.1 == name);
        records.push(match (known, sight) {
            (Some(known), Some(&(oid, _, version)))
                if known.until.is_none()
                    && known.oid == Some(oid)
                    && known.version == version
                    && !refused.contains(name) =>
            {
                PublicationRecord {
                    since: known.since.filter(|since| applied < Some(*since)),
                    left_out: None,
                    ..known.clone()
                }
            }
            // In the first record, no position has been missed, unless the walsender has told so before: the target may
            // have been restored since.
            (_, Some(&(oid, _, version))) => PublicationRecord {
                name: name.clone(),
                oid: Some(oid),
                version: version.to_owned(),
                since: (!recorded.is_empty() || refused.contains(name)).then_some(end),
                until: None,
                left_out: None,
            },
            (Some(known), None) => {
                let until = Some(known.until.unwrap_or(end));
                PublicationRecord { until, left_out: None, ..known.clone() }
            }
            (None, None) => PublicationRecord {
                name: name.clone(),
                oid: None,
                version: String::new(),
                since: None,
                until: Some(if recorded.is_empty() { Lsn::ZERO } else { end }),
                left_out: None,
            },
        });
    }
    let former = recorded.iter().filter(|record| !configured.contains(&record.name));
    records.extend(former.filter_map(|record| {
        let until = record.until.unwrap_or(end);
        let former = PublicationRecord { until: Some(until), left_out: None, ..record.clone() };
        (applied < Some(until)).then_some(former)
    }));
    if let Some(from) = applied {
        note_left_out(&mut records, configured, server_version_num, from, refused);
    }
    records
}

/// A stream without any publication is none: the next one begins where they exist, and lacks nothing from there on.
fn note_left_out(
    records: &mut [PublicationRecord],
    configured: &[String],
    server_version_num: u32,
    from: Lsn,
    refused: &[String],
) {
    let Named { skip_to, left_out, .. } = named(records, configured, server_version_num, from, refused);
    for record in records.iter_mut().filter(|record| skip_to.is_none() && left_out.contains(&record.name)) {
        record.left_out = Some(from);
    }
}

/// The publications of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Named {
    pub names: Vec<String>,
    /// Once the stream has passed this position, others can be asked for.
    pub again_at: Option<Lsn>,
    /// No publication existed up to this position, so there is nothing to apply before it.
    pub skip_to: Option<Lsn>,
    /// Publications that exist now and are not asked for: what they publish is not sent, also behind `again_at`.
    pub left_out: Vec<String>,
}

/// Chooses the publications for a stream that begins at `from`. `refused` are those that the walsender has found
/// missing there.
#[must_use]
pub fn named(
    records: &[PublicationRecord],
    configured: &[String],
    server_version_num: u32,
    from: Lsn,
    refused: &[String],
) -> Named {
    let tolerated = server_version_num >= TOLERATED_SINCE;
    let may_exist = |record: &&PublicationRecord| match record.until {
        Some(until) => until > from || (tolerated && configured.contains(&record.name)),
        None => true,
    };
    let candidates: Vec<&PublicationRecord> = records.iter().filter(may_exist).collect();
    let asked = candidates.iter().filter(|record| !refused.contains(&record.name));
    let names: Vec<String> = asked.map(|record| record.name.clone()).collect();
    let ahead = |lsn: &Lsn| *lsn > from;
    let exists = |record: &&&PublicationRecord| refused.contains(&record.name) && record.until.is_none();
    let seen = candidates.iter().filter(exists);
    let left_out = seen.clone().map(|record| record.name.clone()).collect();
    let first_seen: Option<Lsn> = seen.filter_map(|record| record.since).filter(ahead).max();
    let ends = candidates.iter().filter_map(|record| record.until).filter(ahead).max();
    Named {
        skip_to: first_seen.filter(|_| names.is_empty()),
        again_at: first_seen.max(ends),
        names,
        left_out,
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    fn record(name: &str, oid: u32, since: Option<u64>, until: Option<u64>) -> PublicationRecord {
        let (since, until) = (since.map(Lsn::new), until.map(Lsn::new));
        PublicationRecord {
            name: name.to_owned(),
            oid: Some(oid),
            version: "7".to_owned(),
            since,
            until,
            left_out: None,
        }
    }

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn looks_are_recorded_until_the_stream_has_passed_them() {
        let check = |recorded: &[PublicationRecord],
                     configured: &[&str],
                     seen: &[Sight<'_>],
                     applied,
                     expected: &[PublicationRecord]| {
            let (end, applied) = (Lsn::new(50), Some(Lsn::new(applied)));
            let found = update(recorded, &strings(configured), seen, end, applied, &[], 170_000);
            assert_eq!(found, expected, "{recorded:?}");
        };
        let p = record("p", 1, None, None);
        check(&[], &["p"], &[(1, "p", "7")], 10, from_ref(&p));
        check(from_ref(&p), &["p"], &[(1, "p", "7")], 10, from_ref(&p));
        check(from_ref(&p), &["p"], &[(2, "p", "7")], 10, &[record("p", 2, Some(50), None)]);
        // It may have had another name for some time.
        let altered = PublicationRecord { version: "8".to_owned(), ..record("p", 1, Some(50), None) };
        check(from_ref(&p), &["p"], &[(1, "p", "8")], 10, &[altered]);
        check(from_ref(&p), &["p"], &[], 10, &[record("p", 1, None, Some(50))]);
        let first =
            update(&[], &strings(&["p"]), &[(1, "p", "7")], Lsn::new(50), None, &strings(&["p"]), 170_000);
        assert_eq!(first, [record("p", 1, Some(50), None)]);
        check(&[record("p", 1, None, Some(20))], &["p"], &[], 30, &[record("p", 1, None, Some(20))]);
        check(&[record("p", 1, Some(20), None)], &["p"], &[(1, "p", "7")], 20, from_ref(&p));
        // Renamed, and the configuration follows.
        check(
            from_ref(&p),
            &["q"],
            &[(1, "q", "8")],
            10,
            &[
                PublicationRecord { version: "8".to_owned(), ..record("q", 1, Some(50), None) },
                record("p", 1, None, Some(50)),
            ],
        );
        let q = record("q", 1, None, None);
        check(&[q.clone(), record("p", 1, None, Some(20))], &["q"], &[(1, "q", "7")], 20, &[q]);
    }

    /// A transaction with changes from before the publication was made commits after the stream has passed the look
    /// that saw it first.
    #[test]
    fn a_publication_that_is_found_missing_later_is_proven_by_the_look_alone() {
        let known = record("p", 1, Some(20), None);
        let sight = (1, "p", "7");
        let (configured, refused) = (strings(&["p"]), strings(&["p"]));
        let again = update(
            from_ref(&known),
            &configured,
            &[sight],
            Lsn::new(50),
            Some(Lsn::new(30)),
            &refused,
            170_000,
        );
        assert_eq!(again, [record("p", 1, Some(50), None)]);
        let named = named(&again, &configured, 170_000, Lsn::new(30), &refused);
        assert_eq!((named.names.len(), named.skip_to), (0, Some(Lsn::new(50))));
    }

    /// The next look comes once the stream is behind the one that saw the publication again, and goes further.
    #[test]
    fn a_publication_that_was_left_out_is_known_at_the_next_look() {
        let again = [PublicationRecord { left_out: Some(Lsn::new(30)), ..record("p", 1, Some(50), None) }];
        let found = |applied, refused: &[&str]| {
            let Unsent { names, from } = unsent(&again, Some(Lsn::new(applied)), &strings(refused));
            (names, from.map(Lsn::as_u64))
        };
        assert_eq!(found(30, &["p"]), (strings(&["p"]), Some(30)));
        assert_eq!(found(30, &[]), (strings(&[]), None));
        assert_eq!(found(70, &[]), (strings(&["p"]), Some(30)));
        let missing = [record("p", 1, None, Some(50))];
        for (applied, version, expected) in
            [(50, 170_000, &["p"][..]), (49, 170_000, &[]), (50, 180_000, &[])]
        {
            let found = unasked(&missing, &strings(&["p"]), version, Some(Lsn::new(applied)));
            assert_eq!(found, strings(expected), "{applied} {version}");
        }
        let (sight, configured) = ((1, "p", "7"), strings(&["p"]));
        let seen = update(&again, &configured, &[sight], Lsn::new(80), Some(Lsn::new(70)), &[], 170_000);
        assert_eq!(seen, [record("p", 1, None, None)]);
        // Another one keeps the stream going meanwhile.
        let (known, both) = ([record("p", 1, None, None), record("q", 2, None, None)], strings(&["p", "q"]));
        let sights = [(3, "p", "9"), (2, "q", "7")];
        let found =
            update(&known, &both, &sights, Lsn::new(50), Some(Lsn::new(30)), &strings(&["p"]), 170_000);
        assert_eq!(found.iter().map(|one| one.left_out).collect::<Vec<_>>(), [Some(Lsn::new(30)), None]);
    }

    #[test]
    fn a_publication_is_asked_for_where_it_may_exist() {
        let check = |records: &[PublicationRecord],
                     version,
                     refused: &[&str],
                     expected: (&[&str], Option<u64>, Option<u64>)| {
            let found = named(records, &strings(&["p", "q"]), version, Lsn::new(30), &strings(refused));
            let (names, again_at, skip_to) = expected;
            let expected = Named {
                names: strings(names),
                again_at: again_at.map(Lsn::new),
                skip_to: skip_to.map(Lsn::new),
                left_out: found.left_out.clone(),
            };
            assert_eq!(found, expected, "{records:?}, refused {refused:?}");
        };
        let (old, new) = (170_000, 180_000);
        let (p, q) = (record("p", 1, None, None), record("q", 2, None, None));
        check(&[p.clone(), q.clone()], old, &[], (&["p", "q"], None, None));
        // Missing, and the stream has passed the look.
        let missing = record("q", 2, None, Some(20));
        check(&[p.clone(), missing.clone()], old, &[], (&["p"], None, None));
        check(&[p.clone(), missing], new, &[], (&["p", "q"], None, None));
        // Missing now, and maybe not yet.
        let later = record("q", 2, None, Some(40));
        check(&[p.clone(), later.clone()], old, &[], (&["p", "q"], Some(40), None));
        check(&[p.clone(), later], old, &["q"], (&["p"], Some(40), None));
        // Made again.
        let again = record("q", 3, Some(40), None);
        check(&[p, again.clone()], old, &["q"], (&["p"], Some(40), None));
        let left_out = |refused: &[&str]| {
            named(from_ref(&again), &strings(&["q"]), old, Lsn::new(30), &strings(refused)).left_out
        };
        assert_eq!((left_out(&["q"]), left_out(&[])), (strings(&["q"]), strings(&[])));
        check(from_ref(&again), old, &[], (&["q"], None, None));
        check(&[again], old, &["q"], (&[], Some(40), Some(40)));
        // Renamed, and the configuration follows: one after the other.
        let renamed = [record("q", 1, Some(40), None), record("was", 1, None, Some(40))];
        check(&renamed, old, &[], (&["q", "was"], Some(40), None));
        check(&renamed, old, &["q"], (&["was"], Some(40), None));
        check(&renamed, old, &["was"], (&["q"], Some(40), None));
        check(&renamed, new, &[], (&["q", "was"], Some(40), None));
    }
}
