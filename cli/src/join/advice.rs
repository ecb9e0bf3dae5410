//! What a reason of the member agent means to the person at the terminal, and what to do.

use crate::failure::{Exit, Failure};

/// What the advice speaks of.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Name of the member.
    pub member: &'a str,
    /// Where it looks for the hub.
    pub endpoints: &'a [String],
    /// The pin it demands.
    pub pin: &'a str,
    /// The condition's message.
    pub message: &'a str,
}

/// How to take a reason of a false `Enrolled` or `Connected`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Advice {
    /// Waiting doesn't help.
    Stop(Failure),
    /// It may pass: say it while waiting, and fail with it when time runs out.
    Wait(Failure),
}

impl Advice {
    /// The failure, however patient.
    pub fn failure(&self) -> &Failure {
        match self {
            Self::Stop(failure) | Self::Wait(failure) => failure,
        }
    }
}

/// What to make of `reason`.
pub fn for_reason(reason: &str, context: &Context<'_>) -> Advice {
    let member = context.member;
    let hub = context.endpoints.join(", ");
    let detail = if context.message.is_empty() {
        String::new()
    } else {
        format!("\n  the agent says: {}", context.message)
    };
    let again = format!("on the hub: spillway token create {member}, then paste what it prints");
    match reason {
        "HubUnreachable" => Advice::Wait(
            Failure::new(Exit::HubUnreachable, format!("the member agent can't reach the hub at {hub}{detail}"))
                .fix("check that the address is the hub's and that firewalls let the cluster's pods call it; members call out, nothing calls in")
                .fix("check that the hub runs: spillway status, on the hub")
                .fix(format!("if the address is wrong, on the hub: spillway token create {member} --endpoint HOST:PORT, then paste what it prints")),
        ),
        "HubUnavailable" => Advice::Wait(
            Failure::new(Exit::HubUnreachable, format!("the hub at {hub} can't serve at the moment{detail}"))
                .fix("see what it is busy with: spillway status, on the hub"),
        ),
        "PinMismatch" => Advice::Stop(
            Failure::new(
                Exit::PinMismatch,
                format!("what answers at {hub} isn't the hub that the pin names; the token was not sent{detail}"),
            )
            .fix(format!("compare the pin ({}) with what a fresh `spillway token create` prints on the hub; a hub that was installed anew has a new one", context.pin))
            .fix("if they are equal, something between the cluster and the hub answers in its place (a TLS-terminating proxy or load balancer, or an attacker): pass TCP through"),
        ),
        "TokenUsed" => Advice::Stop(
            Failure::new(Exit::TokenRefused, format!("the token has been used{detail}"))
                .fix(format!("if it wasn't you: somebody else joined as {member}; see spillway status on the hub"))
                .fix(again),
        ),
        "TokenExpired" => Advice::Stop(
            Failure::new(Exit::TokenRefused, format!("the token has expired{detail}"))
                .fix(again)
                .fix("a longer life: --ttl 24h"),
        ),
        "TokenUnknown" => Advice::Stop(
            Failure::new(Exit::TokenRefused, format!("the hub doesn't know the token{detail}"))
                .fix("it may have been revoked, mistyped, or made on another hub")
                .fix(again),
        ),
        "TokenForOtherMember" => Advice::Stop(
            Failure::new(Exit::TokenRefused, format!("the token was made for another name than {member}{detail}"))
                .fix("join with the name that stands in the printed command")
                .fix(format!("or, to join as {member}, {again}")),
        ),
        "TokenMissing" => Advice::Wait(
            Failure::new(Exit::TokenRefused, format!("the member agent finds no token{detail}"))
                .fix(again),
        ),
        "NameTaken" => Advice::Stop(
            Failure::new(Exit::NameTaken, format!("another cluster has joined as {member}{detail}"))
                .fix("choose another name: on the hub, spillway token create OTHER-NAME")
                .fix(format!("if this cluster is that one, rebuilt: on the hub, spillway token create {member} --rejoin")),
        ),
        "RequestInvalid" => Advice::Stop(
            Failure::new(Exit::Other, format!("the hub refuses the agent's request{detail}"))
                .fix("hub and agents may be of different versions: spillway version, on both sides"),
        ),
        "Revoked" | "CertificateNotAccepted" | "CertificateExpired" | "IdentityUnusable" => Advice::Stop(
            Failure::new(Exit::TokenRefused, format!("the hub doesn't accept the agent's certificate any more ({reason}){detail}"))
                .fix(format!("on the hub: spillway token create {member} --rejoin, then, here, spillway leave --force and paste what it printed")),
        ),
        "NotOurHub" | "StaleHub" => Advice::Stop(
            Failure::new(Exit::PinMismatch, format!("the hub at {hub} isn't the one this cluster joined, or is an old copy of it ({reason}){detail}"))
                .fix("restore the hub from its newest backup, or leave with --force and join again"),
        ),
        other => Advice::Wait(
            Failure::new(Exit::Other, format!("the member agent reports {other}{detail}"))
                .fix("see what it says: kubectl logs -n spillway-system deployment/spillway-member-agent"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn every_reason_has_its_code_and_its_fix() {
        let endpoints = ["hub.example.org:9443".to_owned()];
        let context = Context {
            member: "fra-1",
            endpoints: &endpoints,
            pin: "sha256:ab",
            message: "",
        };
        let mut table = String::new();
        for reason in [
            "HubUnreachable",
            "HubUnavailable",
            "PinMismatch",
            "TokenUsed",
            "TokenExpired",
            "TokenUnknown",
            "TokenForOtherMember",
            "TokenMissing",
            "NameTaken",
            "RequestInvalid",
            "Revoked",
            "NotOurHub",
            "SomethingNew",
        ] {
            let advice = for_reason(reason, &context);
            let patience = if matches!(advice, Advice::Stop(_)) {
                "stop"
            } else {
                "wait"
            };
            let failure = advice.failure();
            assert!(!failure.fix.is_empty(), "{reason} says what to do");
            let _ = writeln!(
                table,
                "{reason} ({patience}, exit {}): {failure}",
                failure.exit as u8
            );
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn the_agents_own_words_come_along() {
        let endpoints = ["hub:1".to_owned()];
        let context = Context {
            member: "a",
            endpoints: &endpoints,
            pin: "",
            message: "connection refused",
        };
        assert!(
            for_reason("HubUnreachable", &context)
                .failure()
                .what
                .ends_with("hub:1\n  the agent says: connection refused")
        );
    }
}
