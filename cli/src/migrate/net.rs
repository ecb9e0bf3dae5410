//! Addresses, ranges and CIDRs, as others write them and as our types take them.

use std::net::IpAddr;

use ipnet::IpNet;

/// One entry of a pool: an address, `first-last` or a CIDR, in our spelling, and whether it is IPv6.
pub(super) fn pool_entry(entry: &str) -> Result<(String, bool), String> {
    let bad = || format!("{entry:?} is no address, range or CIDR");
    let entry_text = entry.trim();
    if let Some((first, last)) = entry_text.split_once('-') {
        let first: IpAddr = first.trim().parse().map_err(|_| bad())?;
        let last: IpAddr = last.trim().parse().map_err(|_| bad())?;
        if first.is_ipv6() != last.is_ipv6() || first > last {
            return Err(bad());
        }
        return Ok((format!("{first}-{last}"), first.is_ipv6()));
    }
    if let Ok(net) = entry_text.parse::<IpNet>() {
        return Ok((net.trunc().to_string(), net.network().is_ipv6()));
    }
    let address: IpAddr = entry_text.parse().map_err(|_| bad())?;
    Ok((address.to_string(), address.is_ipv6()))
}

/// CIDRs and addresses as the fewest CIDRs that hold the same, sorted. One that can't be read fails all: a list that
/// lost an entry says something else.
pub(super) fn merged(field: &str, list: &[String]) -> Result<Vec<String>, String> {
    let mut nets: Vec<IpNet> = Vec::new();
    for entry in list.iter().map(|e| e.trim()).filter(|e| !e.is_empty()) {
        let net = entry
            .parse::<IpNet>()
            .or_else(|_| entry.parse::<IpAddr>().map(IpNet::from))
            .map_err(|_| format!("{field}: {entry:?} is neither a CIDR nor an address"))?;
        nets.push(net.trunc());
    }
    let mut nets = IpNet::aggregate(&nets);
    nets.sort_unstable();
    Ok(nets.iter().map(ToString::to_string).collect())
}
