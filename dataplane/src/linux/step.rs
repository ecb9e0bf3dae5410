//! One write, with its name.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use nix::libc::{EADDRNOTAVAIL, ENODEV, ENOENT, ESRCH};

use super::netlink::Requests;
use super::sysctls;
use crate::{Changes, Error, Operation, Result};

/// What the step writes.
#[derive(Debug)]
pub(super) enum Action {
    /// A route netlink request with these flags.
    Netlink(Box<RouteNetlinkMessage>, u16),
    /// A kernel setting.
    Sysctl(String, String),
    /// Can't be done; the message says why.
    Impossible(String),
}

/// One operation on one object.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) operation: Operation,
    pub(super) object: String,
    pub(super) action: Action,
}

impl Step {
    /// Adds what isn't there. An object of the same key that somebody made meanwhile is an error.
    pub(super) fn add(object: String, message: RouteNetlinkMessage) -> Self {
        let action = Action::Netlink(Box::new(message), NLM_F_CREATE | NLM_F_EXCL);
        Self {
            operation: Operation::Add,
            object,
            action,
        }
    }

    /// Replaces what is there, in one go.
    pub(super) fn replace(object: String, message: RouteNetlinkMessage) -> Self {
        let action = Action::Netlink(Box::new(message), NLM_F_CREATE | NLM_F_REPLACE);
        Self {
            operation: Operation::Change,
            object,
            action,
        }
    }

    /// Changes an attribute of what is there.
    pub(super) fn set(object: String, message: RouteNetlinkMessage) -> Self {
        Self {
            operation: Operation::Change,
            object,
            action: Action::Netlink(Box::new(message), 0),
        }
    }

    /// Takes out what is there; that it has gone already is fine.
    pub(super) fn remove(object: String, message: RouteNetlinkMessage) -> Self {
        Self {
            operation: Operation::Remove,
            object,
            action: Action::Netlink(Box::new(message), 0),
        }
    }

    fn run(&self, requests: &mut Requests<RouteNetlinkMessage>) -> Result<()> {
        let result = match &self.action {
            Action::Netlink(message, flags) => {
                let what = format!("{:?} {}", self.operation, self.object).to_lowercase();
                requests.ack(&what, *flags, (**message).clone())
            }
            Action::Sysctl(path, value) => sysctls::write(path, value),
            Action::Impossible(why) => Err(Error::Impossible(why.clone())),
        };
        match result {
            Err(error)
                if self.operation == Operation::Remove
                    && [Some(ENOENT), Some(ESRCH), Some(ENODEV), Some(EADDRNOTAVAIL)]
                        .contains(&error.errno()) =>
            {
                Ok(())
            }
            other => other,
        }
    }
}

/// Runs all steps, whatever becomes of each.
pub(super) fn run(
    steps: impl IntoIterator<Item = Step>,
    requests: &mut Requests<RouteNetlinkMessage>,
    done: &mut Changes,
    failures: &mut Vec<Error>,
) {
    for step in steps {
        match step.run(requests) {
            Ok(()) => done.push(step.operation, step.object),
            Err(error) => failures.push(error),
        }
    }
}

/// What is to be built and what is to be taken away.
pub(super) fn split(steps: Vec<Step>) -> (Vec<Step>, Vec<Step>) {
    steps.into_iter().partition(|s| s.operation != Operation::Remove)
}
