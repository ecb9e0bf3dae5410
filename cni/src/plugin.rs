//! What the plugin decides: go on, wait, or refuse.
//!
//! | the agent | a policy could select the pod | no policy could |
//! |---|---|---|
//! | answers | as it says | as it says |
//! | is away or hangs | waits for it, then refuses: kubelet tries again | goes on |
//!
//! Without a cache nothing was ever planned on this node, or all of it was torn down: everybody goes on.

use std::io::Write;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::cache::{Cache, Standing};
use crate::config::{Failure, Input, TRY_AGAIN, VERSIONS, attachment};
use crate::protocol::{Answer, Ask, Attachment, Silence, ask};

/// Pause between two attempts to reach an agent that is away.
const RETRY: Duration = Duration::from_millis(25);

/// How long a pod that no policy can select waits for an agent that doesn't answer.
const COURTESY: Duration = Duration::from_millis(500);

/// How long the end of a sandbox may be held up.
const FAREWELL: Duration = Duration::from_millis(500);

/// Part of the wait that the answer's way back may take.
const MARGIN: Duration = Duration::from_millis(250);

/// What an operator does where the agent doesn't answer.
const REMEDY: &str =
    "look at the pods of DaemonSet spillway-node-agent on this node; kubelet tries again by itself";

/// Runs one command: reads the environment by `variable`, writes to `out`. Answers whether it went well.
pub fn run(variable: impl Fn(&str) -> Option<String>, stdin: &str, out: &mut impl Write) -> bool {
    let command = variable("CNI_COMMAND").unwrap_or_default();
    if command == "VERSION" {
        let version = VERSIONS.last().copied().unwrap_or_default();
        let answer = serde_json::json!({"cniVersion": version, "supportedVersions": VERSIONS});
        return writeln!(out, "{answer}").is_ok();
    }
    let outcome = match Input::parse(stdin) {
        Ok(input) => {
            let attachment = attachment(&variable, input.addresses());
            perform(&command, &input, attachment).map_err(|(code, msg, details)| Failure {
                version: input.version.clone(),
                code,
                msg,
                details,
            })
        }
        Err(error) => Err(Failure {
            version: VERSIONS[0].into(),
            code: 6,
            msg: "spillway-cni: the network configuration can't be read".into(),
            details: error.to_string(),
        }),
    };
    let (text, well) = match outcome {
        Ok(text) => (text, true),
        Err(failure) => (serde_json::to_string(&failure).unwrap_or_default(), false),
    };
    (text.is_empty() || writeln!(out, "{text}").is_ok()) && well
}

type Problem = (u32, String, String);

fn perform(command: &str, input: &Input<'_>, attachment: Attachment) -> Result<String, Problem> {
    let socket = &input.entry.socket;
    match command {
        "ADD" => {
            let previous = input.previous.ok_or_else(|| {
                let why = "spillway-cni: there is no result before it; it must stand after other plugins"
                    .to_owned();
                (6, why, String::new())
            })?;
            // Without either there is no pod, or it has no network of its own.
            if !attachment.namespace.is_empty() && !attachment.addresses.is_empty() {
                admit(input, &attachment).map_err(|why| held(&attachment, &why))?;
            }
            Ok(previous.get().to_owned())
        }
        "CHECK" => {
            check(input, attachment.clone()).map_err(|why| held(&attachment, &why))?;
            Ok(String::new())
        }
        // A sandbox must be able to go whatever the agent does.
        "DEL" => {
            _ = ask(socket, Ask::Del(attachment), FAREWELL);
            Ok(String::new())
        }
        "GC" => {
            let containers = input.containers();
            _ = ask(socket, Ask::Gc { containers }, FAREWELL);
            Ok(String::new())
        }
        // A node whose agent is away still starts pods of no policy, and so isn't unready.
        "STATUS" => Ok(String::new()),
        other => Err((
            4,
            format!("spillway-cni: CNI_COMMAND {other:?} isn't known"),
            String::new(),
        )),
    }
}

fn held(attachment: &Attachment, why: &str) -> Problem {
    let Attachment { namespace, pod, .. } = attachment;
    (
        TRY_AGAIN,
        format!("Spillway holds pod {namespace}/{pod}: {why}"),
        "nothing of it may leave before its node has programmed its egress policies".into(),
    )
}

/// Returns when the pod may go on, or says why it may not.
fn admit(input: &Input<'_>, attachment: &Attachment) -> Result<(), String> {
    let deadline = Instant::now() + input.entry.wait();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Read again each time: the agent may have written it meanwhile.
        let reason = reason_to_wait(input, attachment);
        let limit = if reason.is_some() {
            left
        } else {
            left.min(COURTESY)
        };
        let question = Ask::Add {
            attachment: attachment.clone(),
            wait: u64::try_from(limit.saturating_sub(MARGIN).as_millis()).unwrap_or(u64::MAX),
        };
        let silence = match ask(&input.entry.socket, question, limit) {
            Ok(Answer { ok: true, .. }) => return Ok(()),
            Ok(Answer { message, .. }) => return Err(message),
            Err(silence) => silence,
        };
        let Some(reason) = reason else {
            return Ok(());
        };
        if Instant::now() + RETRY >= deadline {
            return Err(format!(
                "{reason}, and the node agent doesn't answer ({silence}); {REMEDY}"
            ));
        }
        sleep(RETRY);
    }
}

/// Why a pod waits for an agent that doesn't answer; none where it needn't.
fn reason_to_wait(input: &Input<'_>, attachment: &Attachment) -> Option<String> {
    let Attachment {
        namespace, addresses, ..
    } = attachment;
    if *namespace == input.entry.namespace {
        return None;
    }
    match standing(&input.entry.cache, namespace, addresses) {
        Ok(Standing::Free) => None,
        Ok(Standing::MayBeSelected) => Some(format!("a policy may select pods of namespace {namespace}")),
        Ok(Standing::AddressInUse) => Some(format!(
            "its address {} was that of a pod that a policy selects",
            list(addresses)
        )),
        Err(error) => Some(format!(
            "whether a policy selects it isn't known ({}: {error})",
            input.entry.cache.display()
        )),
    }
}

fn standing(
    cache: &Path,
    namespace: &str,
    addresses: &std::collections::BTreeSet<std::net::IpAddr>,
) -> std::io::Result<Standing> {
    let cache = Cache::read(cache)?;
    Ok(cache.map_or(Standing::Free, |c| c.standing(namespace, addresses)))
}

fn list(addresses: &std::collections::BTreeSet<std::net::IpAddr>) -> String {
    let all: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    all.join(", ")
}

fn check(input: &Input<'_>, attachment: Attachment) -> Result<(), String> {
    let reason = reason_to_wait(input, &attachment);
    match ask(&input.entry.socket, Ask::Check(attachment), COURTESY) {
        Ok(Answer { ok: true, .. }) => Ok(()),
        Ok(Answer { message, .. }) => Err(message),
        Err(Silence::Away(_) | Silence::Late { .. } | Silence::Broken { .. }) if reason.is_none() => Ok(()),
        Err(silence) => Err(format!("the node agent doesn't answer ({silence}); {REMEDY}")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::sync::mpsc;
    use std::thread;

    use serde_json::{Value, json};

    use super::*;
    use crate::cache::FORMAT;
    use crate::protocol::Request;

    const RESULT: &str = r#"{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.5/24"}],"x":  1}"#;

    struct Node {
        directory: tempfile::TempDir,
        wait: u32,
    }

    impl Node {
        fn new(wait: u32) -> Self {
            Self {
                directory: tempfile::tempdir().expect("directory"),
                wait,
            }
        }

        fn socket(&self) -> PathBuf {
            self.directory.path().join("s")
        }

        fn cache(&self, namespaces: &[(&str, bool)], addresses: &[&str]) {
            let cache = Cache {
                format: FORMAT,
                namespaces: namespaces.iter().map(|(n, s)| ((*n).to_owned(), *s)).collect(),
                elsewhere: false,
                addresses: addresses.iter().map(|a| a.parse().expect("address")).collect(),
            };
            let path = self.directory.path().join("cni.json");
            std::fs::write(path, serde_json::to_vec(&cache).expect("text")).expect("written");
        }

        fn run(&self, command: &str) -> (bool, String) {
            self.run_for(command, "payments")
        }

        fn run_for(&self, command: &str, namespace: &str) -> (bool, String) {
            let environment = BTreeMap::from([
                ("CNI_COMMAND", command.to_owned()),
                ("CNI_CONTAINERID", "c".to_owned()),
                ("CNI_IFNAME", "eth0".to_owned()),
                (
                    "CNI_ARGS",
                    format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=billing-0;K8S_POD_UID=u"),
                ),
            ]);
            let stdin = format!(
                r#"{{"cniVersion":"1.0.0","name":"n","type":"spillway-cni","namespace":"spillway-system","wait":{},
                "socket":{},"cache":{},"prevResult":{RESULT}}}"#,
                self.wait,
                json!(self.socket()),
                json!(self.directory.path().join("cni.json")),
            );
            let mut out = Vec::new();
            let well = run(|name| environment.get(name).cloned(), &stdin, &mut out);
            (well, String::from_utf8(out).expect("text"))
        }

        /// Answers `answers` questions and hands them out.
        fn agent(&self, answers: Vec<Answer>) -> mpsc::Receiver<Request> {
            let listener = UnixListener::bind(self.socket()).expect("bound");
            let (sender, questions) = mpsc::channel();
            thread::spawn(move || {
                for answer in answers {
                    let (mut stream, _) = listener.accept().expect("accepted");
                    let mut line = String::new();
                    BufReader::new(stream.try_clone().expect("cloned"))
                        .read_line(&mut line)
                        .expect("read");
                    sender
                        .send(serde_json::from_str(&line).expect("a request"))
                        .expect("sent");
                    writeln!(stream, "{}", serde_json::to_string(&answer).expect("text")).expect("written");
                }
            });
            questions
        }
    }

    fn message(out: &str) -> String {
        let failure: Value = serde_json::from_str(out).expect("an error in JSON");
        assert_eq!(
            (&failure["code"], &failure["cniVersion"]),
            (&json!(11), &json!("1.0.0")),
            "{out}"
        );
        failure["msg"].as_str().expect("a message").to_owned()
    }

    #[test]
    fn the_result_before_is_handed_on_to_the_letter_once_the_agent_agrees() {
        let node = Node::new(5);
        node.cache(&[("payments", true)], &[]);
        let questions = node.agent(vec![Answer::yes()]);
        assert_eq!(node.run("ADD"), (true, format!("{RESULT}\n")));
        let Ask::Add { attachment, wait } = questions.recv().expect("asked").ask else {
            panic!("no ADD");
        };
        assert_eq!(
            (attachment.pod.as_str(), attachment.uid.as_str()),
            ("billing-0", "u")
        );
        assert_eq!(
            attachment.addresses,
            ["10.0.0.5".parse().expect("address")].into()
        );
        assert!((4_000..5_000).contains(&wait), "{wait}");
    }

    #[test]
    fn a_refusal_is_told_as_it_came() {
        let node = Node::new(5);
        let _questions = node.agent(vec![Answer::no("nft says no")]);
        let (well, out) = node.run("ADD");
        assert!(
            !well && message(&out).contains("payments/billing-0: nft says no"),
            "{out}"
        );
    }

    #[test]
    fn without_an_agent_only_pods_that_no_policy_can_select_go_on() {
        let node = Node::new(0);
        assert!(node.run("ADD").0, "nothing was ever planned");
        node.cache(&[("payments", true), ("web", false)], &["10.0.0.5"]);
        let (well, out) = node.run("ADD");
        assert!(!well && message(&out).contains("spillway-node-agent"), "{out}");
        let (well, out) = node.run_for("ADD", "web");
        assert!(
            !well && message(&out).contains("10.0.0.5"),
            "a reused address: {out}"
        );
        node.cache(&[("payments", true), ("web", false)], &[]);
        assert!(node.run_for("ADD", "web").0);
        assert!(node.run_for("ADD", "spillway-system").0);
        assert!(!node.run("CHECK").0);
        assert!(node.run_for("CHECK", "web").0);
        std::fs::write(node.directory.path().join("cni.json"), "").expect("written");
        assert!(!node.run_for("ADD", "web").0, "a damaged cache");
        assert!(node.run_for("ADD", "spillway-system").0);
    }

    #[test]
    fn an_agent_that_comes_late_is_waited_for() {
        let node = Node::new(20);
        node.cache(&[("payments", true)], &[]);
        thread::scope(|scope| {
            let plugin = scope.spawn(|| node.run("ADD"));
            sleep(Duration::from_millis(200));
            let _questions = node.agent(vec![Answer::yes()]);
            assert!(plugin.join().expect("joined").0);
        });
    }

    #[test]
    fn a_hung_agent_holds_up_nobody_but_those_it_must() {
        let node = Node::new(2);
        node.cache(&[("payments", true), ("web", false)], &[]);
        let _listens_and_never_accepts = UnixListener::bind(node.socket()).expect("bound");
        let began = Instant::now();
        assert!(node.run_for("ADD", "web").0);
        assert!(
            began.elapsed() < Duration::from_millis(1_500),
            "{:?}",
            began.elapsed()
        );
        assert!(node.run("DEL").0 && node.run("GC").0);
        let began = Instant::now();
        assert!(!node.run("ADD").0);
        assert!(
            began.elapsed() >= Duration::from_millis(1_500),
            "{:?}",
            began.elapsed()
        );
    }

    #[test]
    fn the_end_of_a_sandbox_is_told_and_never_fails() {
        let node = Node::new(5);
        assert_eq!(node.run("DEL"), (true, String::new()));
        let questions = node.agent(vec![Answer::no("whatever")]);
        assert_eq!(node.run("DEL"), (true, String::new()));
        assert!(matches!(questions.recv().expect("asked").ask, Ask::Del(a) if a.container == "c"));
    }

    #[test]
    fn the_other_commands() {
        let node = Node::new(5);
        let (well, out) = node.run("VERSION");
        assert!(well && out.contains("0.3.1") && out.contains("1.1.0"), "{out}");
        assert_eq!(node.run("STATUS"), (true, String::new()));
        assert!(!node.run("DANCE").0);
        let mut out = Vec::new();
        assert!(!run(|_| Some("ADD".to_owned()), "{", &mut out));
        let first = r#"{"cniVersion":"1.0.0","type":"spillway-cni"}"#;
        assert!(
            !run(|_| Some("ADD".to_owned()), first, &mut out),
            "it can't be the first plugin"
        );
    }
}
