//! What Prometheus is told.

use hyper::{Response, StatusCode};
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Registry as Names, Unit},
};

use super::{
    http::{self, Body},
    limits::Limit,
    registry::Registry,
};

use crate::audit::Audit;

type Labels = Vec<(&'static str, String)>;

/// Counters of what happens by the way. What a session counts is read from the sessions when it is asked for.
#[derive(Default)]
pub(super) struct Metrics {
    refused: Family<Labels, Counter>,
    answered: Family<Labels, Counter>,
    reached: Family<Labels, Counter>,
    logins: Family<Labels, Counter>,
}

impl Metrics {
    /// A link was refused with this close code.
    pub(super) fn refused(&self, code: u16) {
        self.refused
            .get_or_create(&vec![("code", code.to_string())])
            .inc();
    }

    /// A request was answered with this status.
    pub(super) fn answered(&self, status: StatusCode) {
        self.answered
            .get_or_create(&vec![("code", status.as_str().to_owned())])
            .inc();
    }

    /// Somebody has tried to sign in.
    pub(super) fn login(&self, succeeded: bool) {
        let outcome = if succeeded { "succeeded" } else { "failed" };
        self.logins
            .get_or_create(&vec![("outcome", outcome.to_owned())])
            .inc();
    }

    /// There was no room for one more.
    pub(super) fn reached(&self, limit: Limit) {
        self.reached
            .get_or_create(&vec![("limit", limit.key().to_owned())])
            .inc();
    }

    /// Answers `GET /metrics` of this user.
    pub(super) fn render(&self, sessions: &Registry, user: &str, audit: &Audit) -> Response<Body> {
        let mut names = Names::with_prefix("nbd_proxy");
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        names.register("build", "The running program", Info::new(version));
        names.register(
            "http_requests",
            "HTTP requests answered, by status",
            self.answered.clone(),
        );
        names.register(
            "refused_links",
            "Links refused, by close code",
            self.refused.clone(),
        );
        names.register(
            "logins",
            "Attempts to sign in, by outcome",
            self.logins.clone(),
        );
        names.register(
            "limit_reached",
            "Connections, links, streams and sessions for which there was no room, by limit",
            self.reached.clone(),
        );
        let lost = Counter::<u64>::default();
        lost.inc_by(audit.lost());
        names.register(
            "audit_lost_events",
            "Events that the audit trail lacks",
            lost,
        );
        register_sessions(&mut names, sessions, user);
        let mut text = String::new();
        match encode(&mut text, &names) {
            Ok(()) => http::typed(
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                http::full(StatusCode::OK, text),
            ),
            Err(error) => http::error(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}

/// Of the configurations that this user may see.
fn register_sessions(names: &mut Names, registry: &Registry, user: &str) {
    let present = Family::<Labels, Gauge>::default();
    let ended = Family::<Labels, Counter>::default();
    let bytes_read = Family::<Labels, Counter>::default();
    let requests = Family::<Labels, Counter>::default();
    for slot in registry.visible(user) {
        let view = slot.view();
        let totals = slot.totals();
        let labels = vec![("configuration", view.name)];
        let with = |key, value: &str| [labels.clone(), vec![(key, value.to_owned())]].concat();
        for state in ["attaching", "attached", "held", "draining"] {
            let is_so = view
                .session
                .as_ref()
                .is_some_and(|session| session.state == state);
            present
                .get_or_create(&with("state", state))
                .set(i64::from(is_so));
        }
        ended
            .get_or_create(&with("outcome", "in_order"))
            .inc_by(totals.in_order);
        ended
            .get_or_create(&with("outcome", "failed"))
            .inc_by(totals.failed);
        bytes_read.get_or_create(&labels).inc_by(totals.bytes_read);
        requests.get_or_create(&labels).inc_by(totals.requests);
    }
    names.register("sessions", "Present sessions, by state", present);
    names.register(
        "ended_sessions",
        "Sessions that are over, by outcome",
        ended,
    );
    // Its name becomes `read_bytes`.
    names.register_with_unit(
        "read",
        "Bytes that the machine has read",
        Unit::Bytes,
        bytes_read,
    );
    names.register(
        "device_requests",
        "Requests that the machine has made",
        requests,
    );
}
