//! Joining and leaving, with the commands a user types.

use anyhow::{Context, Result, ensure};

use super::{Federation, program};

/// The join command that `spillway token create` printed.
#[derive(Clone)]
pub struct Token {
    command: Vec<String>,
}

impl Token {
    fn parse(printed: &str) -> Result<Self> {
        // The command may be folded with backslashes for reading.
        let joined = printed.replace("\\\n", " ");
        let line = joined
            .lines()
            .find(|l| l.contains("spillway join"))
            .with_context(|| format!("no join command in: {printed}"))?;
        let words = line.split_whitespace().map(|w| w.trim_matches('\'').to_owned());
        Ok(Self {
            command: words.collect(),
        })
    }

    fn with_flag(&self, flag: &str, value: &str) -> Self {
        let mut command = self.command.clone();
        if let Some(at) = command.iter().position(|w| w == flag) {
            command[at + 1] = value.into();
        }
        Self { command }
    }

    /// The same with another pin.
    #[must_use]
    pub fn with_pin(&self, pin: &str) -> Self {
        self.with_flag("--ca-pin", pin)
    }

    /// The same with another endpoint.
    #[must_use]
    pub fn with_endpoint(&self, endpoint: &str) -> Self {
        self.with_flag("--endpoint", endpoint)
    }

    /// The same with a token that the hub never made.
    #[must_use]
    pub fn with_forged_secret(&self) -> Self {
        let command = self.command.iter().map(|word| {
            word.rsplit_once('.')
                .filter(|_| word.contains("spw1."))
                .map_or_else(
                    || word.clone(),
                    |(head, secret)| format!("{head}.{}", secret.chars().rev().collect::<String>()),
                )
        });
        Self {
            command: command.collect(),
        }
    }
}

impl Federation {
    /// `spillway token create`.
    pub async fn token(&self, member: &str, labels: &[&str]) -> Result<Token> {
        self.token_with(member, labels, "1h").await
    }

    /// A token whose life is over.
    pub async fn expired_token(&self, member: &str) -> Result<Token> {
        let token = self.token_with(member, &[], "1s").await?;
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        Ok(token)
    }

    async fn token_with(&self, member: &str, labels: &[&str], ttl: &str) -> Result<Token> {
        let partition = match self.cluster(member)?.plan()?.spec.partition {
            1 => "default".to_owned(),
            n => format!("partition-{n}"),
        };
        let mut args = vec!["token", "create", member, "--ttl", ttl, "--partition", &partition];
        for label in labels {
            args.extend(["--label", label]);
        }
        Token::parse(&self.spillway_ok("hub", &args).await?)
    }

    async fn run_join(
        &self,
        member: &str,
        token: &Token,
        extra: &[&str],
        kubeconfig: Option<&str>,
    ) -> Result<(i32, String)> {
        let line: Vec<String> = token
            .command
            .iter()
            .cloned()
            .chain(extra.iter().map(|s| (*s).to_owned()))
            .collect();
        // As pasted into a shell, with the program on the PATH.
        let programs = program("spillway")?
            .parent()
            .map(ToOwned::to_owned)
            .unwrap_or_default();
        let path = format!(
            "{}:{}",
            programs.display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let kubeconfig = match kubeconfig {
            Some(path) => path.into(),
            None => self.arena.kubeconfig(member)?,
        };
        let output = tokio::process::Command::new("sh")
            .args(["-c", &line.join(" ")])
            .env("PATH", path)
            .env("KUBECONFIG", kubeconfig)
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(std::time::Duration::from_secs(240), output)
            .await
            .context("join doesn't end")??;
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok((output.status.code().unwrap_or(-1), text))
    }

    /// Pastes the join command into a shell of the member's operator.
    pub async fn join(&self, member: &str, token: &Token) -> Result<String> {
        let (code, said) = self.run_join(member, token, &[], None).await?;
        ensure!(code == 0, "join ended with {code}:\n{said}");
        Ok(said)
    }

    /// The same, expecting it to fail and to say each of `words`; then clears what it left.
    pub async fn join_fails(&self, member: &str, token: &Token, words: &[&str]) -> Result<()> {
        let (code, said) = self.run_join(member, token, &["--timeout", "30s"], None).await?;
        ensure!(code != 0, "join succeeded:\n{said}");
        for word in words {
            ensure!(
                said.to_lowercase().contains(&word.to_lowercase()),
                "join didn't say {word:?}:\n{said}"
            );
        }
        self.spillway_ok(member, &["leave", "--force", "--yes"])
            .await
            .map(drop)
    }

    /// A join by somebody who may do nothing in the member names the rights that are missing.
    pub async fn join_fails_without_rights(&self, member: &str, token: &Token) -> Result<()> {
        let cluster = self.cluster(member)?;
        cluster.kubectl(&["create", "serviceaccount", "nobody"]).await?;
        let secret = cluster.kubectl(&["create", "token", "nobody"]).await?;
        let admin: serde_json::Value = serde_json::from_str(
            &cluster
                .kubectl(&["config", "view", "--raw", "--flatten", "-o", "json"])
                .await?,
        )?;
        let mut config = admin;
        config["users"][0]["user"] = serde_json::json!({"token": secret.trim()});
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), config.to_string())?;
        let path = file.path().to_string_lossy().into_owned();
        let (code, said) = self.run_join(member, token, &[], Some(&path)).await?;
        cluster.kubectl(&["delete", "serviceaccount", "nobody"]).await?;
        ensure!(code != 0, "join succeeded without rights:\n{said}");
        ensure!(
            said.contains("customresourcedefinitions"),
            "join didn't name the missing right:\n{said}"
        );
        Ok(())
    }

    /// `spillway leave`, waiting for the end.
    pub async fn leave(&self, member: &str) -> Result<()> {
        self.spillway_ok(member, &["leave", "--yes"]).await.map(drop)
    }

    /// What is still of ours in a cluster's API and in the kernels of its nodes.
    pub async fn trace_of_us(&self, member: &str) -> Result<Vec<String>> {
        let cluster = self.cluster(member)?;
        let mut found = Vec::new();
        let kinds = "crd,namespace,clusterrole,clusterrolebinding,priorityclass,validatingadmissionpolicy,validatingadmissionpolicybinding";
        let listed = cluster
            .kubectl(&["get", kinds, "-o", "name", "--ignore-not-found"])
            .await?;
        found.extend(
            listed
                .lines()
                .filter(|l| l.contains("spillway"))
                .map(str::to_owned),
        );
        for node in cluster.nodes()? {
            found.extend(
                self.kernel_trace(node.name())
                    .await?
                    .into_iter()
                    .map(|t| format!("{}: {t}", node.name())),
            );
        }
        Ok(found)
    }
}
