//! Takes out what must not leave the cluster. Secrets are never read in the first place; this is for what might have got
//! into logs, objects of others and environment variables all the same.

use serde_json::Value;

/// Stands in for what was taken out.
pub const REDACTED: &str = "[redacted]";

/// What begins a secret that is told by its beginning, and which characters go on with it: join tokens, and signed tokens
/// (JWT: base64 of `{"`), which service accounts have.
const TOKENS: [&str; 2] = ["spw1.", "eyJ"];
/// A signed token has two full stops; shorter things that begin like one are none.
const SHORTEST: usize = 20;

/// Words in the name of a field or variable whose value is nobody's business.
const NAMES: [&str; 6] = ["token", "password", "passwd", "secret", "private", "credential"];
/// Fields that have such a word in their name and are names, not secrets.
const HARMLESS: [&str; 9] = [
    "secretName",
    "secretRef",
    "secretKeyRef",
    "secret",
    "secrets",
    "imagePullSecrets",
    "tokenExpirationSeconds",
    "automountServiceAccountToken",
    "serviceAccountToken",
];

/// Text, such as a log.
pub fn text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut key = false;
    for line in text.split_inclusive('\n') {
        if line.contains("-----BEGIN") && line.contains("PRIVATE KEY-----") {
            out.push_str(REDACTED);
            out.push('\n');
            // The whole key may stand in one line, with its line ends written as `\n`.
            key = !line.contains("-----END");
            continue;
        }
        if key {
            key = !line.contains("-----END");
            continue;
        }
        tokens(line, &mut out);
    }
    out
}

fn tokens(line: &str, out: &mut String) {
    let mut rest = line;
    while let Some(start) = TOKENS.iter().filter_map(|t| rest.find(t)).min() {
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        let goes_on = |c: char| c.is_ascii_alphanumeric() || ['.', '_', '-', '=', '+', '/'].contains(&c);
        let end = from.find(|c| !goes_on(c)).unwrap_or(from.len());
        let (found, behind) = from.split_at(end);
        out.push_str(if found.len() < SHORTEST { found } else { REDACTED });
        rest = behind;
    }
    out.push_str(rest);
}

/// An object: the same in every string, values of telling names, and what only bloats it.
pub fn object(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("managedFields");
            // A copy of the object as it was applied, by whoever did.
            fields.remove("kubectl.kubernetes.io/last-applied-configuration");
            let named = fields.get("name").and_then(Value::as_str).is_some_and(tells);
            for (name, field) in fields.iter_mut() {
                let value_of_variable = name == "value" && named;
                if field.is_string()
                    && (value_of_variable || (tells(name) && !HARMLESS.contains(&name.as_str())))
                {
                    *field = Value::String(REDACTED.into());
                } else {
                    object(field);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(object),
        Value::String(string) => *string = text(string),
        _ => {}
    }
}

fn tells(name: &str) -> bool {
    let name = name.to_lowercase();
    NAMES.iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tokens_and_keys_leave_no_trace_in_text() {
        let log = "a spw1.abcd.0123456789abcdefghij used\nBearer eyJhbGciOiJSUzI1NiJ9.e30.c2lnbmF0dXJl!\n\
                   -----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMG\n-----END PRIVATE KEY-----\nafter eyJ\n";
        assert_eq!(
            text(log),
            "a [redacted] used\nBearer [redacted]!\n[redacted]\nafter eyJ\n"
        );
        let one_line = r#"key="-----BEGIN EC PRIVATE KEY-----\nMIGH\n-----END EC PRIVATE KEY-----" next"#;
        assert_eq!(text(&format!("{one_line}\nrest\n")), "[redacted]\nrest\n");
        assert_eq!(text("nothing to hide\n"), "nothing to hide\n");
    }

    #[test]
    fn telling_fields_lose_their_value_and_keep_their_name() {
        let mut value = json!({
            "metadata": {"managedFields": [1], "annotations": {
                "kubectl.kubernetes.io/last-applied-configuration": "x", "a": "spw1.abcd.0123456789abcdefghij"}},
            "spec": {
                "env": [{"name": "DB_PASSWORD", "value": "hunter2"}, {"name": "LOG", "value": "info"}],
                "volumes": [{"name": "v", "secret": {"secretName": "s"}}],
                "apiToken": "abc",
            },
        });
        object(&mut value);
        assert_eq!(
            value,
            json!({
                "metadata": {"annotations": {"a": REDACTED}},
                "spec": {
                    "env": [{"name": "DB_PASSWORD", "value": REDACTED}, {"name": "LOG", "value": "info"}],
                    "volumes": [{"name": "v", "secret": {"secretName": "s"}}],
                    "apiToken": REDACTED,
                },
            })
        );
    }
}
