//! How joining and staying joined goes: set by the connection, shown by the status.

use std::time::SystemTime;

use spillway_crds::ConditionType;
use spillway_crds::condition::Verdict;

/// What the connection knows about itself.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Progress {
    /// Generation of the HubConnection that this is about.
    pub(crate) generation: Option<i64>,
    /// The `Enrolled` condition.
    pub(crate) enrolled: Verdict,
    /// The `Connected` condition.
    pub(crate) connected: Verdict,
    /// Endpoint in use.
    pub(crate) endpoint: Option<String>,
    /// Why the newest plan was refused.
    pub(crate) refused: Option<String>,
    /// End of the certificate's life.
    pub(crate) expires: Option<SystemTime>,
    /// The hub agreed to let this member go, or never had it.
    pub(crate) released: bool,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            generation: None,
            enrolled: enrolling("looking for this cluster's identity"),
            connected: not_enrolled(),
            endpoint: None,
            refused: None,
            expires: None,
            released: false,
        }
    }
}

/// An attempt to enrol runs.
pub(crate) fn enrolling(message: impl Into<String>) -> Verdict {
    Verdict {
        kind: ConditionType::Enrolled,
        status: None,
        reason: "Enrolling".into(),
        message: message.into(),
    }
}

/// The certificate is there.
pub(crate) fn enrolled(member: &str) -> Verdict {
    Verdict::yes(
        ConditionType::Enrolled,
        "Enrolled",
        format!("this cluster has a certificate as {member}"),
    )
}

/// No connection without a certificate.
pub(crate) fn not_enrolled() -> Verdict {
    Verdict::no(
        ConditionType::Connected,
        "NotEnrolled",
        "this cluster has no certificate yet; see the Enrolled condition",
    )
}
