//! Enrolment: a token is checked, used up, and becomes a Member with a certificate's serial number.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::PostParams;
use kube::{Api, Client};
use serde::Serialize;
use spillway_core::plan::Digest;
use spillway_crds::hub::{Member, MemberSpec, MemberStatus};
use spillway_link::hub::{EnrollRefusal, EnrollRequest, Renewal, SessionInfo};
use spillway_link::pki::{Serial, Token, TrustState};
use tokio::time::Instant;

use crate::api::{CALL_LIMIT, ENROLMENT, Failure, Guard, apply_status, within};

/// Label of Secrets that hold a join token's hash.
pub(crate) const TOKEN_LABEL: &str = "spillway.io/join-token";
/// A token's Secret is named after its public part.
const TOKEN_PREFIX: &str = "spillway-token-";
/// Certificates that one token can lead to: the first answers may get lost.
const MOST_SERIALS: usize = 16;
/// Certificates are valid from a little before they were made.
const BACKDATE: SignedDuration = SignedDuration::from_mins(5);
/// Longest wait before a renewal that met another write of the same object begins anew.
const CROSSED: Duration = Duration::from_millis(50);
/// How often an enrolment that met another write of the same objects begins anew.
const ATTEMPTS: usize = 3;

/// A join token as it is stored.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Record {
    hash: Digest,
    member: String,
    expires: Timestamp,
    labels: BTreeMap<String, String>,
    partition: Option<String>,
    /// The member may exist already; its other certificates end with this enrolment.
    rejoin: bool,
    used: bool,
    /// When it was used, where that can be read.
    used_at: Option<Timestamp>,
    /// Public key that used it.
    used_by: Option<String>,
    /// Serial numbers of the certificates that it led to, the newest last.
    serials: Vec<String>,
}

/// Whether a token that may be used was used before, by the same key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Use {
    First,
    Again,
}

impl Record {
    /// Reads a Secret; the error names the field at fault.
    pub(crate) fn read(secret: &Secret) -> Result<Self, String> {
        let data = secret.data.as_ref();
        let text = |name: &str| {
            data.and_then(|d| d.get(name))
                .and_then(|b| std::str::from_utf8(&b.0).ok())
                .map(|s| s.trim().to_owned())
        };
        let must = |name: &str| text(name).ok_or_else(|| format!("{name} is missing"));
        Ok(Self {
            hash: must("hash")?.parse().map_err(|_| "hash isn't a SHA-256 digest")?,
            member: must("member")?,
            expires: must("expires")?
                .parse()
                .map_err(|_| "expires isn't an RFC 3339 time")?,
            labels: text("labels")
                .filter(|l| !l.is_empty())
                .map_or(Ok(BTreeMap::new()), |l| serde_json::from_str(&l))
                .map_err(|_| "labels isn't a JSON object of strings")?,
            partition: text("partition").filter(|p| !p.is_empty()),
            rejoin: text("rejoin").as_deref() == Some("true"),
            used: text("used").is_some(),
            used_at: text("used").and_then(|t| t.parse().ok()),
            used_by: text("used-by"),
            serials: text("serials")
                .iter()
                .flat_map(|s| s.split(','))
                .map(str::to_owned)
                .collect(),
        })
    }

    /// Whether the token may be used for this. An answer may get lost, so the same key may ask again.
    fn judge(&self, member: &str, key: &Digest, now: Timestamp) -> Result<Use, EnrollRefusal> {
        let again = self.used_by == Some(key.to_string());
        if self.used && !again {
            Err(EnrollRefusal::TokenUsed)
        } else if now >= self.expires {
            Err(EnrollRefusal::TokenExpired)
        } else if self.member != member {
            Err(EnrollRefusal::TokenForOtherMember)
        } else if self.used {
            Ok(Use::Again)
        } else {
            Ok(Use::First)
        }
    }
}

impl Record {
    /// When the token ceased to be of use, where it did.
    pub(crate) fn over_since(&self) -> Timestamp {
        self.used_at.unwrap_or(self.expires).min(self.expires)
    }
}

/// Serial numbers that are good, and what the member holds that uses the newest.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Certificates {
    certificate_serial: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_certificate_serial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_valid_from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_issuer: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    trusted_authorities: Vec<String>,
}

impl Certificates {
    fn new(serial: Serial, previous: Option<&str>, valid_from: SystemTime, trust: &TrustState) -> Self {
        Self {
            certificate_serial: serial.to_string(),
            previous_certificate_serial: previous.map(str::to_owned),
            certificate_valid_from: rfc3339(valid_from),
            certificate_issuer: Some(trust.issuer.to_string()),
            trusted_authorities: trust.trusted.iter().map(ToString::to_string).collect(),
        }
    }

    /// What is on record; `None` where no certificate was ever given.
    pub(crate) fn recorded(status: &MemberStatus) -> Option<Self> {
        Some(Self {
            certificate_serial: status.certificate_serial.clone()?,
            previous_certificate_serial: status.previous_certificate_serial.clone(),
            certificate_valid_from: status.certificate_valid_from.clone(),
            certificate_issuer: status.certificate_issuer.clone(),
            trusted_authorities: status.trusted_authorities.clone(),
        })
    }
}

/// Enrols, and records certificates.
pub(crate) struct Registrar {
    tokens: Api<Secret>,
    members: Api<Member>,
    /// When the backup was made that this hub was restored from.
    restored_to: Option<Timestamp>,
}

impl Registrar {
    pub(crate) fn new(client: &Client, namespace: &str, restored_to: Option<Timestamp>) -> Self {
        Self {
            tokens: Api::namespaced(client.clone(), namespace),
            members: Api::all(client.clone()),
            restored_to,
        }
    }

    /// True where the certificate isn't on record because it was given after the backup that this hub was restored
    /// from. The CA has signed it for this member; of several the newest counts, so that one that was replaced since
    /// is good until the member itself has come, at most.
    pub(crate) fn is_newer(&self, member: &Member, session: &SessionInfo) -> bool {
        let (Some(backup), Ok(from)) = (self.restored_to, Timestamp::try_from(session.not_before)) else {
            return false;
        };
        let status = member.status.clone().unwrap_or_default();
        let recorded: Option<Timestamp> = status.certificate_valid_from.and_then(|t| t.parse().ok());
        // Never by hand: such a member has to join.
        status.certificate_serial.is_some() && from + BACKDATE >= backup && recorded.is_none_or(|r| from > r)
    }

    /// Checks the token, uses it up and records the member. Returns the member as it stands then.
    pub(crate) async fn enroll(&self, request: &EnrollRequest) -> Result<Member, EnrollRefusal> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            match self.attempt(request).await? {
                Ok(member) => return Ok(member),
                Err(error) if error.is_conflict() || error.is_not_found() => last = Some(error),
                Err(error) => return Err(EnrollRefusal::Unavailable(error.to_string())),
            }
        }
        let why = last.map(|e| e.to_string()).unwrap_or_default();
        Err(EnrollRefusal::Unavailable(why))
    }

    async fn attempt(&self, request: &EnrollRequest) -> Result<Result<Member, Failure>, EnrollRefusal> {
        let unavailable = |e: Failure| EnrollRefusal::Unavailable(e.to_string());
        let (secret, record) = self
            .find(&request.token)
            .await
            .map_err(unavailable)?
            .ok_or(EnrollRefusal::TokenUnknown)?;
        let member = &request.member;
        let usage = record.judge(member, &request.key, Timestamp::now())?;
        let known = within(CALL_LIMIT, self.members.get_opt(member))
            .await
            .map_err(unavailable)?;
        // Of several tokens for one name, one leads to a member; asking again with the same is no new claim.
        let standing = known
            .as_ref()
            .and_then(|m| m.status.as_ref()?.certificate_serial.as_ref());
        let own = usage == Use::Again && standing.is_some_and(|s| record.serials.contains(s));
        if standing.is_some() && !own && !record.rejoin {
            return Err(EnrollRefusal::NameTaken);
        }
        if record.serials.len() >= MOST_SERIALS {
            return Err(EnrollRefusal::TokenUsed);
        }
        Ok(self.admit(request, secret, &record, known).await)
    }

    /// Uses the token up first: what fails after that can be asked for again by the same key only.
    async fn admit(
        &self,
        request: &EnrollRequest,
        secret: Secret,
        record: &Record,
        known: Option<Member>,
    ) -> Result<Member, Failure> {
        let used = used(secret, request, record, Timestamp::now());
        let name = used.metadata.name.clone().unwrap_or_default();
        within(
            CALL_LIMIT,
            self.tokens.replace(&name, &PostParams::default(), &used),
        )
        .await?;
        let member = if let Some(member) = known {
            member
        } else {
            let member = new_member(&request.member, record);
            within(CALL_LIMIT, self.members.create(&PostParams::default(), &member)).await?
        };
        let certificates = Certificates::new(request.serial, None, request.valid_from, &request.trust);
        apply_status(
            &self.members,
            ENROLMENT,
            &member.metadata,
            Guard::Object,
            &certificates,
            CALL_LIMIT,
        )
        .await
    }

    async fn find(&self, token: &Token) -> Result<Option<(Secret, Record)>, Failure> {
        let name = format!("{TOKEN_PREFIX}{}", token.id());
        let Some(secret) = within(CALL_LIMIT, self.tokens.get_opt(&name)).await? else {
            return Ok(None);
        };
        let labels = secret.metadata.labels.as_ref();
        if labels.and_then(|l| l.get(TOKEN_LABEL)).map(String::as_str) != Some("true") {
            return Ok(None);
        }
        match Record::read(&secret) {
            Ok(record) => Ok((record.hash == token.hash()).then_some((secret, record))),
            Err(why) => {
                tracing::warn!(
                    secret = name,
                    why,
                    "a join token can't be read; delete it and make another"
                );
                Ok(None)
            }
        }
    }

    /// Records a renewal: the certificate that asked for it stays good, the one before ends. `None` where the
    /// one that asked isn't good any more, by the newest version and not only by this replica's copy: a
    /// renewal that crosses a new enrolment mustn't undo it.
    pub(crate) async fn renewed(&self, renewal: &Renewal) -> Result<Option<Member>, Failure> {
        let old = renewal.old.serial.as_str();
        let (from, trust) = (renewal.valid_from, &renewal.trust);
        let certificates = Certificates::new(renewal.new_serial, Some(old), from, trust);
        self.put_on_record(&renewal.old, &certificates).await
    }

    /// Records a certificate that was given after the backup that this hub was restored from.
    pub(crate) async fn adopt(&self, session: &SessionInfo) -> Result<Option<Member>, Failure> {
        let certificates = Certificates {
            certificate_serial: session.serial.clone(),
            previous_certificate_serial: None,
            certificate_valid_from: rfc3339(session.not_before),
            // What came with it isn't known: the member will be asked to renew.
            certificate_issuer: None,
            trusted_authorities: Vec::new(),
        };
        self.put_on_record(session, &certificates).await
    }

    /// Where `session`'s certificate is good by the newest version of the member.
    async fn put_on_record(
        &self,
        session: &SessionInfo,
        certificates: &Certificates,
    ) -> Result<Option<Member>, Failure> {
        let name = session.member.as_str();
        let until = Instant::now() + CALL_LIMIT;
        loop {
            let member = within(CALL_LIMIT, self.members.get_opt(name)).await?;
            let good = |m: &Member| is_good(m, &session.serial) || self.is_newer(m, session);
            let Some(member) = member.filter(good) else {
                return Ok(None);
            };
            let meta = &member.metadata;
            match apply_status(
                &self.members,
                ENROLMENT,
                meta,
                Guard::Version,
                certificates,
                CALL_LIMIT,
            )
            .await
            {
                Ok(written) => return Ok(Some(written)),
                // Reports change the version all the time, many times a second while plans move.
                Err(error) if error.is_conflict() && Instant::now() < until => {
                    tokio::time::sleep(CROSSED.mul_f64(rand::random())).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whole seconds, as certificates have them.
fn rfc3339(time: SystemTime) -> Option<String> {
    Timestamp::try_from(time).ok().map(|t| t.to_string())
}

/// True where the certificate with this serial number is one of the member's.
pub(crate) fn is_good(member: &Member, serial: &str) -> bool {
    let status = member.status.as_ref();
    let is = |recorded: Option<&String>| recorded.is_some_and(|r| r == serial);
    status.is_some_and(|s| is(s.certificate_serial.as_ref()) || is(s.previous_certificate_serial.as_ref()))
}

fn used(mut secret: Secret, request: &EnrollRequest, record: &Record, now: Timestamp) -> Secret {
    let mut serials = record.serials.clone();
    serials.push(request.serial.to_string());
    let data = secret.data.get_or_insert_default();
    let mut set = |name: &str, value: String| data.insert(name.into(), ByteString(value.into_bytes()));
    set("used-by", request.key.to_string());
    set("serials", serials.join(","));
    if !record.used {
        set("used", now.to_string());
    }
    secret
}

fn new_member(name: &str, record: &Record) -> Member {
    let spec = MemberSpec {
        partition: record.partition.clone().unwrap_or_else(|| "default".into()),
        ..MemberSpec::default()
    };
    let mut member = Member::new(name, spec);
    member.metadata.labels = Some(record.labels.clone());
    member
}

#[cfg(test)]
mod tests {
    use spillway_link::pki::{Authorities, CertificateAuthority};

    use super::*;
    use crate::authority::tests::secret;

    fn stored(extra: &[(&str, &str)]) -> Secret {
        let hash = Digest::of(b"token").to_string();
        let mut fields = vec![
            ("hash", hash.as_str()),
            ("member", "fra-1"),
            ("expires", "2030-01-01T00:00:00Z"),
        ];
        fields.extend(extra);
        secret(&fields)
    }

    fn now() -> Timestamp {
        "2029-12-31T00:00:00Z".parse().expect("a time")
    }

    #[test]
    fn a_token_is_used_once_and_again_only_by_the_same_key() {
        let (mine, other) = (Digest::of(b"mine"), Digest::of(b"other"));
        let record = Record::read(&stored(&[])).expect("whole");
        assert_eq!(record.judge("fra-1", &mine, now()), Ok(Use::First));
        let request = EnrollRequest {
            token: Token::generate(),
            member: "fra-1".into(),
            serial: Serial::random(),
            valid_from: SystemTime::now(),
            key: mine,
            trust: Authorities::from(CertificateAuthority::generate("h").expect("a CA"))
                .state()
                .clone(),
        };
        let once = used(stored(&[]), &request, &record, now());
        let record = Record::read(&once).expect("whole");
        assert_eq!(record.judge("fra-1", &mine, now()), Ok(Use::Again));
        assert_eq!(record.over_since(), now());
        let later = now() + SignedDuration::from_mins(1);
        let record = Record::read(&used(once, &request, &record, later)).expect("whole");
        assert_eq!(record.serials.len(), 2, "both may be in force");
        assert_eq!(record.used_at, Some(now()), "the first time counts");
        assert_eq!(
            record.judge("fra-1", &other, now()),
            Err(EnrollRefusal::TokenUsed)
        );
    }

    #[test]
    fn a_token_is_for_one_name_and_a_limited_time() {
        let key = Digest::of(b"mine");
        let record = Record::read(&stored(&[])).expect("whole");
        assert_eq!(
            record.judge("fra-2", &key, now()),
            Err(EnrollRefusal::TokenForOtherMember)
        );
        assert_eq!(
            record.judge("fra-1", &key, record.expires),
            Err(EnrollRefusal::TokenExpired)
        );
    }

    #[test]
    fn labels_and_partition_go_to_the_member() {
        let record = Record::read(&stored(&[
            ("labels", r#"{"region":"eu"}"#),
            ("partition", "west"),
        ]))
        .expect("whole");
        let member = new_member("fra-1", &record);
        assert_eq!(member.spec.partition, "west");
        assert_eq!(
            member
                .metadata
                .labels
                .expect("labels")
                .get("region")
                .map(String::as_str),
            Some("eu")
        );
        assert_eq!(
            new_member("a", &Record::read(&stored(&[])).expect("whole"))
                .spec
                .partition,
            "default"
        );
    }

    #[test]
    fn a_damaged_token_names_its_field() {
        for (name, value) in [("hash", "x"), ("expires", "soon"), ("labels", "[]")] {
            let error = Record::read(&stored(&[(name, value)])).expect_err("damaged");
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn only_the_newest_certificate_and_the_one_before_are_good() {
        let mut member = Member::new("a", MemberSpec::default());
        assert!(!is_good(&member, "1"), "made by hand, never enrolled");
        member.status = Some(MemberStatus {
            certificate_serial: Some("2".into()),
            previous_certificate_serial: Some("1".into()),
            ..MemberStatus::default()
        });
        assert!(is_good(&member, "1") && is_good(&member, "2"));
        assert!(!is_good(&member, "0"));
    }
}
