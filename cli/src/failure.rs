//! How a command fails: what is wrong, what to do about it, and an exit code that scripts can tell apart.

use std::fmt;

/// Exit codes. Scripts rely on them: a number never changes its meaning.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Exit {
    /// Something else.
    Other = 1,
    /// The command line is wrong (clap's own code).
    Usage = 2,
    /// The kubeconfig is unusable or the API server doesn't answer.
    Cluster = 3,
    /// The user may not do what the command needs.
    Rights = 4,
    /// The cluster has joined already.
    AlreadyJoined = 5,
    /// The agents can't reach the hub.
    HubUnreachable = 6,
    /// The hub's CA isn't the one that the pin names.
    PinMismatch = 7,
    /// The hub refused the token: unknown, used, expired or for another name.
    TokenRefused = 8,
    /// Another cluster has joined under this name.
    NameTaken = 9,
    /// Pods don't start: image, scheduling, admission, crashes.
    PodsNotStarting = 10,
    /// Time ran out.
    TimedOut = 11,
    /// Spillway, or the thing named, isn't there.
    NotFound = 12,
    /// `status --check` or `check` found something wrong.
    Unhealthy = 13,
}

impl Exit {
    /// Every code with what it means, for the reference.
    pub const ALL: [(u8, &'static str); 14] = [
        (0, "success"),
        (Self::Other as u8, "something else"),
        (Self::Usage as u8, "the command line is wrong"),
        (
            Self::Cluster as u8,
            "the kubeconfig is unusable or the API server doesn't answer",
        ),
        (Self::Rights as u8, "rights are missing; the message lists them"),
        (Self::AlreadyJoined as u8, "the cluster has joined already"),
        (
            Self::HubUnreachable as u8,
            "the member's agent can't reach the hub",
        ),
        (
            Self::PinMismatch as u8,
            "the hub's CA isn't the one that the pin names",
        ),
        (
            Self::TokenRefused as u8,
            "the token is unknown, used, expired or for another name",
        ),
        (
            Self::NameTaken as u8,
            "another cluster has joined under this name",
        ),
        (
            Self::PodsNotStarting as u8,
            "pods don't start: image, scheduling, admission or crashes",
        ),
        (Self::TimedOut as u8, "time ran out"),
        (
            Self::NotFound as u8,
            "Spillway, or what the command names, isn't there",
        ),
        (
            Self::Unhealthy as u8,
            "`status --check` or `check` found something wrong",
        ),
    ];
}

/// Why a command failed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// The process's exit code.
    pub exit: Exit,
    /// What is wrong, in one sentence.
    pub what: String,
    /// What to do, one step an entry.
    pub fix: Vec<String>,
}

impl Failure {
    /// A failure with nothing to advise yet.
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self {
            exit,
            what: what.into(),
            fix: Vec::new(),
        }
    }

    /// Adds a step to what to do.
    #[must_use]
    pub fn fix(mut self, step: impl Into<String>) -> Self {
        self.fix.push(step.into());
        self
    }

    /// An error of the Kubernetes API while doing `what`, such as `applying Deployment spillway-hub`.
    pub fn kube(what: &str, error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 403 => {
                Self::new(Exit::Rights, format!("{what}: {}", status.message))
                    .fix("use a kubeconfig with more rights (--kubeconfig, --context), or have an administrator run this command")
            }
            kube::Error::Api(status) if status.code == 401 => {
                Self::new(Exit::Cluster, format!("{what}: the API server doesn't accept the kubeconfig's credentials"))
                    .fix("renew the credentials of the kubeconfig, or pick another with --kubeconfig or --context")
            }
            kube::Error::Api(status) => Self::new(Exit::Other, format!("{what}: {}", status.message)),
            other => Self::new(Exit::Cluster, format!("{what}: {}", chain(other)))
                .fix("check that the API server is up and reachable from here: kubectl get --raw /readyz"),
        }
    }
}

/// An error with all its causes: kube's own text often hides the socket's.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = cause.source();
    }
    text
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        for step in &self.fix {
            write!(f, "\n  * {step}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}
