//! Enrolment: the one call that needs no certificate.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, async_trait};
use tracing::{info, warn};

use super::{EnrollRefusal, EnrollRequest, HubBackend, HubConfig};
use crate::is_member_name;
use crate::pki::{AuthoritiesWatch, RequestedKey, Serial};
use crate::proto;
use crate::proto::enroll_response::Outcome;
use crate::proto::enrollment_server::Enrollment;

/// Most enrolments at once: each may cost the backend several calls, and anybody can ask.
const AT_ONCE: usize = 16;

pub(super) struct EnrollService {
    authorities: AuthoritiesWatch,
    config: Arc<HubConfig>,
    backend: Arc<dyn HubBackend>,
    slots: Semaphore,
}

impl EnrollService {
    pub(super) fn new(
        authorities: AuthoritiesWatch,
        config: Arc<HubConfig>,
        backend: Arc<dyn HubBackend>,
    ) -> Self {
        Self {
            authorities,
            config,
            backend,
            slots: Semaphore::new(AT_ONCE),
        }
    }

    async fn decide(&self, request: proto::EnrollRequest) -> Result<proto::Certificate, EnrollRefusal> {
        let _slot = self
            .slots
            .try_acquire()
            .map_err(|_| EnrollRefusal::Unavailable("too many clusters are joining at once".into()))?;
        let token = request.token.parse().map_err(|_| EnrollRefusal::TokenUnknown)?;
        if !is_member_name(&request.member) {
            let why = "a member's name is a DNS label of at most 63 characters";
            return Err(EnrollRefusal::Invalid(why.into()));
        }
        let key =
            RequestedKey::from_csr(&request.csr_der).map_err(|e| EnrollRefusal::Invalid(e.to_string()))?;
        let serial = Serial::random();
        // Signed before the token is used up, handed out after: a failure to sign costs no token.
        let authorities = self.authorities.borrow().clone();
        let issued = authorities
            .signing()
            .issue_member(&key, &request.member, serial, self.config.member_lifetime)
            .map_err(|e| EnrollRefusal::Invalid(e.to_string()))?;
        self.backend
            .enroll(EnrollRequest {
                token,
                member: request.member,
                serial,
                valid_from: issued.not_before,
                key: key.fingerprint(),
                trust: authorities.state().clone(),
            })
            .await?;
        Ok(proto::Certificate {
            chain_pem: issued.chain_pem,
            ca_pem: authorities.bundle_pem().into(),
        })
    }
}

#[async_trait]
impl Enrollment for EnrollService {
    async fn enroll(
        &self,
        request: Request<proto::EnrollRequest>,
    ) -> Result<Response<proto::EnrollResponse>, Status> {
        let peer = request.remote_addr();
        let request = request.into_inner();
        let member: String = request.member.chars().take(63).collect();
        let outcome = match self.decide(request).await {
            Ok(certificate) => {
                info!(member, ?peer, "a cluster has joined");
                Outcome::Certificate(certificate)
            }
            Err(refusal) => {
                warn!(member, ?peer, reason = %refusal, "a cluster may not join");
                Outcome::Refusal(wire(&refusal))
            }
        };
        Ok(Response::new(proto::EnrollResponse {
            outcome: Some(outcome),
        }))
    }
}

fn wire(refusal: &EnrollRefusal) -> proto::EnrollRefusal {
    use proto::EnrollRefusalCode as Code;
    let (code, message) = match refusal {
        EnrollRefusal::TokenUnknown => (Code::TokenUnknown, ""),
        EnrollRefusal::TokenUsed => (Code::TokenUsed, ""),
        EnrollRefusal::TokenExpired => (Code::TokenExpired, ""),
        EnrollRefusal::TokenForOtherMember => (Code::TokenForOtherMember, ""),
        EnrollRefusal::NameTaken => (Code::NameTaken, ""),
        EnrollRefusal::Invalid(why) => (Code::Invalid, why.as_str()),
        EnrollRefusal::Unavailable(why) => (Code::Unavailable, why.as_str()),
    };
    proto::EnrollRefusal {
        code: code.into(),
        message: message.into(),
    }
}

/// Reads what [`wire`] wrote; for codes of a newer hub the message has to do.
pub(crate) fn read(refusal: proto::EnrollRefusal) -> EnrollRefusal {
    use proto::EnrollRefusalCode as Code;
    match refusal.code() {
        Code::TokenUnknown => EnrollRefusal::TokenUnknown,
        Code::TokenUsed => EnrollRefusal::TokenUsed,
        Code::TokenExpired => EnrollRefusal::TokenExpired,
        Code::TokenForOtherMember => EnrollRefusal::TokenForOtherMember,
        Code::NameTaken => EnrollRefusal::NameTaken,
        Code::Unavailable => EnrollRefusal::Unavailable(refusal.message),
        Code::Invalid | Code::Unspecified => EnrollRefusal::Invalid(refusal.message),
    }
}
