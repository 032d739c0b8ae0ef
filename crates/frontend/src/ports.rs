//! Ports of `EXPOSE`: `[[ip:]host:]container[-last][/protocol]`; only the container's part is kept.

use std::net::IpAddr;

/// Returns `port/protocol` for every port that `text` names.
pub(crate) fn parse(text: &str) -> Result<Vec<String>, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (ip, host, container) = match parts[..] {
        [container] => (String::new(), "", container),
        [host, container] => (String::new(), host, container),
        [.., host, container] => (parts[..parts.len() - 2].join(":"), host, container),
        [] => (String::new(), "", ""),
    };
    let (port, protocol) = container.split_once('/').unwrap_or((container, ""));
    if port.is_empty() {
        return Err(format!("invalid port `{text}`: no port specified"));
    }
    let protocol = match protocol.to_lowercase() {
        protocol if protocol.is_empty() => "tcp".to_owned(),
        protocol if matches!(protocol.as_str(), "tcp" | "udp" | "sctp") => protocol,
        _ => return Err(format!("invalid port `{text}`: unknown protocol `{protocol}`")),
    };
    if !ip.is_empty() {
        let bare = ip.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&ip);
        if bare.parse::<IpAddr>().is_err() {
            return Err(format!("invalid port `{text}`: `{ip}` is not an IP address"));
        }
    }
    let (first, last) = range(port).map_err(|reason| format!("invalid port `{text}`: `{port}` {reason}"))?;
    if !host.is_empty() {
        let (first_host, last_host) =
            range(host).map_err(|reason| format!("invalid port `{text}`: host port `{host}` {reason}"))?;
        if last - first != last_host - first_host && first != last {
            return Err(format!("invalid port `{text}`: the ranges `{port}` and `{host}` differ in length"));
        }
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

fn range(text: &str) -> Result<(u32, u32), &'static str> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    if last < first { Err("ends before it begins") } else { Ok((first, last)) }
}

fn number(text: &str) -> Result<u32, &'static str> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("is not a number");
    }
    match digits.parse::<u32>() {
        Ok(port) if port <= 65_535 => Ok(port),
        _ => Err("is out of range (0-65535)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cases are those of BuildKit's `convert_expose_test.go` (F1-123).
    #[test]
    fn ports_are_read_in_all_their_forms() {
        for (text, expected) in [
            ("80", vec!["80/tcp"]),
            ("80/UDP", vec!["80/udp"]),
            ("7000-7002/tcp", vec!["7000/tcp", "7001/tcp", "7002/tcp"]),
            ("8080:80", vec!["80/tcp"]),
            ("127.0.0.1:8080:80/udp", vec!["80/udp"]),
            ("[::1]:8080:80", vec!["80/tcp"]),
            ("::1:8080:80", vec!["80/tcp"]),
            ("8000-9000:80", vec!["80/tcp"]),
        ] {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
        for text in ["", "/tcp", "80/icmp", "x", "70000", "9-8", "-1", "1.2.3:1:2", "1-2:3-5", "80-"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
