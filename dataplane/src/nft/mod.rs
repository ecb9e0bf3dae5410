//! Our nftables table: observed, compared, written in one transaction.
