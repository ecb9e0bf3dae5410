//! The archive: every file goes through the redaction, and what couldn't be got is written down.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;
use serde_json::Value;
use tar::{Builder, Header};

use super::redact;
use crate::failure::{Exit, Failure};

/// Something that isn't in the archive.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(super) struct Missing {
    /// What.
    pub(super) what: String,
    /// Why.
    pub(super) why: String,
}

/// What the archive says of itself, in `manifest.json`.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    /// Version of this program.
    spillway: &'static str,
    cluster: &'a str,
    gathered: String,
    files: &'a [String],
    missing: &'a [Missing],
}

/// An archive that is being filled.
pub(super) struct Archive<W: Write> {
    tar: Builder<GzEncoder<W>>,
    /// The one folder that everything is in.
    root: String,
    seconds: u64,
    files: Vec<String>,
    missing: Vec<Missing>,
}

fn cant(error: &std::io::Error) -> Failure {
    Failure::new(Exit::Other, format!("the archive can't be written: {error}"))
}

impl<W: Write> Archive<W> {
    /// Begins. Everything lies in the folder `root`; `now` is in Unix time.
    pub(super) fn begin(out: W, root: &str, now: u64) -> Self {
        Self {
            tar: Builder::new(GzEncoder::new(out, Compression::default())),
            root: root.into(),
            seconds: now,
            files: Vec::new(),
            missing: Vec::new(),
        }
    }

    /// Adds text, redacted.
    pub(super) fn text(&mut self, path: &str, content: &str) -> Result<(), Failure> {
        self.files.push(path.into());
        self.raw(path, redact::text(content).as_bytes())
    }

    /// Adds an object, redacted.
    pub(super) fn object(&mut self, path: &str, mut value: Value) -> Result<(), Failure> {
        redact::object(&mut value);
        let text = serde_json::to_string_pretty(&value).unwrap_or_default();
        self.files.push(path.into());
        self.raw(path, text.as_bytes())
    }

    /// Adds what was got, or notes why it wasn't.
    pub(super) fn text_or(&mut self, path: &str, got: Result<String, Failure>) -> Result<(), Failure> {
        match got {
            Ok(text) => self.text(path, &text),
            Err(failure) => {
                self.lacks(path, &failure);
                Ok(())
            }
        }
    }

    /// Adds what was got, or notes why it wasn't.
    pub(super) fn object_or(&mut self, path: &str, got: Result<Value, Failure>) -> Result<(), Failure> {
        match got {
            Ok(value) => self.object(path, value),
            Err(failure) => {
                self.lacks(path, &failure);
                Ok(())
            }
        }
    }

    /// Notes that something isn't there.
    pub(super) fn lacks(&mut self, what: &str, why: &Failure) {
        self.missing.push(Missing {
            what: what.into(),
            why: redact::text(&why.what),
        });
    }

    fn raw(&mut self, path: &str, content: &[u8]) -> Result<(), Failure> {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.seconds);
        let path = format!("{}/{path}", self.root);
        self.tar
            .append_data(&mut header, path, content)
            .map_err(|e| cant(&e))
    }

    /// Writes the manifest and ends the archive. Answers what is missing.
    pub(super) fn finish(mut self, cluster: &str, when: String) -> Result<(W, Vec<Missing>), Failure> {
        self.files.sort();
        let manifest = Manifest {
            spillway: env!("CARGO_PKG_VERSION"),
            cluster,
            gathered: when,
            files: &self.files,
            missing: &self.missing,
        };
        let text = serde_json::to_string_pretty(&manifest).unwrap_or_default();
        self.raw("manifest.json", text.as_bytes())?;
        let missing = self.missing;
        let zipped = self.tar.into_inner().map_err(|e| cant(&e))?;
        Ok((zipped.finish().map_err(|e| cant(&e))?, missing))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_planted_is_not_found_and_what_is_missing_is_said() {
        let planted = "spw1.abcd.planted0123456789planted";
        let mut archive = Archive::begin(Vec::new(), "x", 0);
        archive
            .text("logs/a.log", &format!("before {planted} after\n"))
            .expect("text");
        archive
            .object(
                "objects/pod.json",
                json!({"env": [{"name": "TOKEN", "value": "planted-value"}], "note": planted}),
            )
            .expect("object");
        let away = Failure::new(Exit::Cluster, format!("no answer, says {planted}"));
        archive.text_or("nodes/n1/show.txt", Err(away)).expect("noted");
        let (bytes, missing) = archive.finish("c", "now".into()).expect("archive");
        assert_eq!(missing.len(), 1);

        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(&bytes[..]));
        let mut seen = Vec::new();
        for entry in tar.entries().expect("entries") {
            let mut entry = entry.expect("an entry");
            let path = entry.path().expect("a path").display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).expect("text");
            assert!(!text.contains("planted"), "{path}: {text}");
            if path == "x/manifest.json" {
                let manifest: Value = serde_json::from_str(&text).expect("JSON");
                assert_eq!(manifest["missing"][0]["what"], "nodes/n1/show.txt");
                assert_eq!(manifest["files"], json!(["logs/a.log", "objects/pod.json"]));
            }
            seen.push(path);
        }
        assert_eq!(seen, ["x/logs/a.log", "x/objects/pod.json", "x/manifest.json"]);
    }
}
