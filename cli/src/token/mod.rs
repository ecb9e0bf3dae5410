//! Join tokens as Secrets in the hub's namespace. They hold a token's hash, never the token.

pub mod create;
pub mod list;
pub mod record;
pub mod revoke;
