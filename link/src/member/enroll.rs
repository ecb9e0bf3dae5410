//! Joining: from a token to an identity.

use std::time::Duration;

use tonic::Request;
use tracing::info;

use super::channel::{chain, over};
use super::{EnrollError, EnrollParams};
use crate::hub::read_refusal;
use crate::pki::{KeyAndCsr, MemberIdentity};
use crate::proto::enroll_response::Outcome;
use crate::proto::enrollment_client::EnrollmentClient;
use crate::proto::{self, EnrollResponse};
use crate::tls::{DialError, PinOutcome, Trust, dial};
use crate::wire::Tcp;

/// Joins: makes a key, checks the hub's pin, sends token and request, and returns the identity. The key
/// has gone nowhere; the caller stores the identity and throws the token away.
///
/// Endpoints that can't be reached are passed over; whatever else goes wrong at one ends the attempt.
pub async fn enroll(params: EnrollParams) -> Result<MemberIdentity, EnrollError> {
    let key = KeyAndCsr::generate().map_err(|e| EnrollError::Protocol(e.to_string()))?;
    enroll_with(&params, &key).await
}

/// [`enroll()`] with a key made before. Where the hub's answer got lost, the same token and key may be
/// tried again; a backend that remembers the key lets them through.
pub async fn enroll_with(params: &EnrollParams, key: &KeyAndCsr) -> Result<MemberIdentity, EnrollError> {
    let mut failure = EnrollError::HubUnreachable {
        endpoint: "(none)".into(),
        cause: "no endpoint is given".into(),
    };
    for endpoint in &params.endpoints {
        match at(endpoint, params, key).await {
            Err(unreachable @ EnrollError::HubUnreachable { .. }) => {
                info!(endpoint, error = %unreachable, "trying the next endpoint");
                failure = unreachable;
            }
            outcome => return outcome,
        }
    }
    Err(failure)
}

async fn at(endpoint: &str, params: &EnrollParams, key: &KeyAndCsr) -> Result<MemberIdentity, EnrollError> {
    // Nothing secret leaves before `dial` has returned: it is what checks the pin.
    let stream = dial(&Tcp, endpoint, Trust::Pin(params.pin), params.limit)
        .await
        .map_err(|e| explain(endpoint, params, e))?;
    let channel = over(stream).await.map_err(|e| EnrollError::HubUnreachable {
        endpoint: endpoint.into(),
        cause: chain(&e),
    })?;
    let mut request = Request::new(proto::EnrollRequest {
        token: params.token.expose().into(),
        csr_der: key.csr_der.clone(),
        member: params.member.clone(),
    });
    // The hub writes objects before it answers.
    request.set_timeout(params.limit.max(Duration::from_secs(30)));
    let answer = EnrollmentClient::new(channel)
        .enroll(request)
        .await
        .map_err(|e| EnrollError::Protocol(chain(&e)))?;
    accept(params, key, answer.into_inner())
}

fn accept(
    params: &EnrollParams,
    key: &KeyAndCsr,
    answer: EnrollResponse,
) -> Result<MemberIdentity, EnrollError> {
    let certificate = match answer.outcome {
        Some(Outcome::Certificate(certificate)) => certificate,
        Some(Outcome::Refusal(refusal)) => return Err(read_refusal(refusal).into()),
        None => return Err(EnrollError::Protocol("it is empty".into())),
    };
    let identity = MemberIdentity {
        key_pem: key.key_pem.clone(),
        chain_pem: certificate.chain_pem,
        ca_pem: certificate.ca_pem,
    };
    let bad = |e: crate::pki::PkiError| EnrollError::Protocol(e.to_string());
    identity.check().map_err(bad)?;
    let name = identity.certificate().map_err(bad)?.member;
    if name == params.member {
        Ok(identity)
    } else {
        Err(EnrollError::Protocol(format!("the certificate is for {name:?}")))
    }
}

fn explain(endpoint: &str, params: &EnrollParams, error: DialError) -> EnrollError {
    let endpoint = endpoint.to_owned();
    match error {
        DialError::Unreachable(cause) => EnrollError::HubUnreachable { endpoint, cause },
        DialError::Tls {
            pin: Some(PinOutcome::Mismatch { got }),
            ..
        } => EnrollError::PinMismatch {
            endpoint,
            expected: params.pin,
            got,
        },
        DialError::Tls { cause, .. } => EnrollError::NotTheHub { endpoint, cause },
        DialError::Identity(e) => EnrollError::Protocol(e.to_string()),
    }
}
