//! Limits and isolation of RUN: the classic flags of `docker build`, and what the values of both forms mean.

use build_engine_engine::{Isolation, ResourceLimits};

use super::flags::byte_size;

/// One flag for each limit, as the classic builder had them.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "RUN")]
pub(crate) struct LimitFlags {
    /// Short for --resource memory=
    #[arg(short, long, value_name = "BYTES")]
    pub(crate) memory: Option<String>,
    /// Short for --resource memory-swap=: memory and swap together, -1 for no limit of swap
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<String>,
    /// Short for --resource cpu-shares=
    #[arg(short, long, value_name = "WEIGHT")]
    pub(crate) cpu_shares: Option<String>,
    /// Short for --resource cpu-period=
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) cpu_period: Option<String>,
    /// Short for --resource cpu-quota=
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<String>,
    /// Short for --resource cpuset-cpus=
    #[arg(long, value_name = "CPUS")]
    pub(crate) cpuset_cpus: Option<String>,
    /// Short for --resource cpuset-mems=
    #[arg(long, value_name = "NODES")]
    pub(crate) cpuset_mems: Option<String>,
}

impl LimitFlags {
    /// Those that were given, by the name of their limit. An empty value asks for nothing.
    pub(crate) fn fields(&self) -> Vec<(&'static str, String)> {
        let all = [
            ("memory", &self.memory),
            ("memory-swap", &self.memory_swap),
            ("cpu-shares", &self.cpu_shares),
            ("cpu-period", &self.cpu_period),
            ("cpu-quota", &self.cpu_quota),
            ("cpuset-cpus", &self.cpuset_cpus),
            ("cpuset-mems", &self.cpuset_mems),
        ];
        let given = |(name, value): (&'static str, &Option<String>)| {
            value.clone().filter(|value| !value.is_empty()).map(|value| (name, value))
        };
        all.into_iter().filter_map(given).collect()
    }
}

/// Sets one limit.
pub(crate) fn set(limits: &mut ResourceLimits, key: &str, value: &str) -> Result<(), String> {
    let bytes = |value: &str| match value {
        "-1" => Ok(-1),
        value => byte_size(value).and_then(|bytes| i64::try_from(bytes).map_err(|_| "too large".into())),
    };
    let number = "expected a number".to_owned();
    match key {
        "memory" => bytes(value).map(|bytes| limits.memory_bytes = bytes),
        "memory-swap" => bytes(value).map(|bytes| limits.memory_swap_bytes = bytes),
        "cpu-shares" => value.parse().map(|shares| limits.cpu_shares = shares).map_err(|_| number),
        "cpu-period" => value.parse().map(|period| limits.cpu_period = period).map_err(|_| number),
        "cpu-quota" => value.parse().map(|quota| limits.cpu_quota = quota).map_err(|_| number),
        "cpuset-cpus" => list(value).map(|list| limits.cpuset_cpus = list),
        "cpuset-mems" => list(value).map(|list| limits.cpuset_mems = list),
        _ => {
            Err("the limit is one of memory, memory-swap, cpu-shares, cpu-period, cpu-quota, cpuset-cpus, cpuset-mems"
                .into())
        }
    }
}

/// What limits that make sense alone do not make together, as Docker refuses it.
pub(crate) fn check(limits: &ResourceLimits) -> Result<(), String> {
    if limits.memory_swap_bytes > 0 && limits.memory_bytes <= 0 {
        return Err("`memory-swap` needs `memory` too: it limits both together".into());
    }
    if limits.memory_swap_bytes > 0 && limits.memory_swap_bytes < limits.memory_bytes {
        return Err("`memory-swap` is smaller than `memory`: it limits both together".into());
    }
    Ok(())
}

fn list(value: &str) -> Result<String, String> {
    let legal = !value.is_empty()
        && value.split(',').all(|part| {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            matches!((from.parse::<u32>(), to.parse::<u32>()), (Ok(from), Ok(to)) if from <= to)
        });
    if legal { Ok(value.to_owned()) } else { Err("expected a list such as 0-3 or 0,2".into()) }
}

/// A level of isolation. What would be weaker than usual does not exist.
pub(crate) fn isolation(text: &str) -> Result<Isolation, String> {
    match text {
        "" | "default" => Ok(Isolation::Default),
        "strict" => Ok(Isolation::Strict),
        "rootless" => Ok(Isolation::Rootless),
        "process" | "hyperv" => Err("that is a level of Windows; expected default, strict or rootless".into()),
        "chroot" | "none" => {
            Err("steps are never less isolated than usual; expected default, strict or rootless".into())
        }
        _ => Err("expected default, strict or rootless".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// D20, S1-35: nothing falls back to less.
    #[test]
    fn d20_levels_of_isolation_that_are_weaker_or_unknown_are_refused() {
        for text in ["process", "hyperv", "chroot", "none", "Strict", "x"] {
            assert!(isolation(text).is_err(), "{text}");
        }
        assert_eq!(isolation("strict"), Ok(Isolation::Strict));
        assert_eq!(isolation("default"), Ok(Isolation::Default));
    }

    /// F1-083
    #[test]
    fn f1_083_limits_that_contradict_each_other_are_refused() {
        let limits = |memory_bytes, memory_swap_bytes| {
            check(&ResourceLimits { memory_bytes, memory_swap_bytes, ..ResourceLimits::default() })
        };
        assert!(limits(0, 5).is_err() && limits(10, 5).is_err());
        assert!(limits(0, -1).is_ok() && limits(10, 10).is_ok() && limits(10, 0).is_ok());
    }
}
