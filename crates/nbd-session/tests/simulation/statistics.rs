//! What has happened in the schedules, to see that they reach everything.

use std::collections::BTreeMap;
use std::fmt;

/// How often each thing has happened.
#[derive(Default)]
pub(crate) struct Statistics(BTreeMap<&'static str, u64>);

/// What a thousand schedules must contain.
const EXPECTED: [&str; 24] = [
    "answered",
    "answered after the end",
    "copy: alone",
    "copy: lost",
    "copy: lost when whole",
    "copy: whole",
    "crashes",
    "ended: bye",
    "ended: closed",
    "ended: ejected",
    "ended: hold-expired",
    "ended: link-lost",
    "ended: refused",
    "failed",
    "held",
    "hold expired while a link is compared",
    "late data of older links",
    "link closed: 1002",
    "link closed: 4408",
    "link closed: 4410",
    "link closed: 4412",
    "restarted",
    "resumed",
    "taken over",
];

impl Statistics {
    pub(crate) fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (what, count) in &other.0 {
            *self.0.entry(what).or_default() += count;
        }
    }

    /// A simulation in which something never happens proves nothing about it.
    pub(crate) fn assert_complete(&self) {
        let missing: Vec<_> = EXPECTED
            .into_iter()
            .filter(|what| !self.0.contains_key(what))
            .collect();
        assert!(
            missing.is_empty(),
            "no schedule had any of these: {missing:?}"
        );
    }
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|(what, count)| writeln!(f, "{count:>12} {what}"))
    }
}
