//! Platforms: operating system, architecture, variant.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What an image runs on. Normalised: the names are Go's, as the image-spec demands.
///
/// Source: OCI image-spec v1.1, image-index.md; normalisation as in containerd's `platforms`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `amd64`, `arm64`, `arm`, …
    pub architecture: String,
    /// `linux`, `windows`, …
    pub os: String,
    /// Version of the operating system (Windows).
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Features of the operating system that are needed.
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    /// `v7` of `linux/arm/v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Text that is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a platform: expected os/architecture or os/architecture/variant, for example linux/arm64")]
pub struct InvalidPlatform(pub String);

impl Platform {
    /// A platform without a variant, normalised.
    pub fn new(os: &str, architecture: &str) -> Self {
        Self::normalised(os, architecture, "")
    }

    /// The platform that this program was compiled for.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self::normalised(std::env::consts::OS, architecture, "")
    }

    /// Whether an image for `other` serves where this one is asked for.
    ///
    /// A missing variant stands for the default one of the architecture; operating system versions are not compared.
    pub fn matches(&self, other: &Self) -> bool {
        fn variant(platform: &Platform) -> &str {
            match (platform.architecture.as_str(), platform.variant.as_deref()) {
                ("arm", None) => "v7",
                ("arm64", None) => "v8",
                ("amd64", None) => "v1",
                (_, variant) => variant.unwrap_or(""),
            }
        }
        self.os == other.os && self.architecture == other.architecture && variant(self) == variant(other)
    }

    /// The same with the names that Go and the image-spec use.
    #[must_use]
    pub fn normalize(&self) -> Self {
        let mut platform = Self::normalised(&self.os, &self.architecture, self.variant.as_deref().unwrap_or(""));
        platform.os_version.clone_from(&self.os_version);
        platform.os_features.clone_from(&self.os_features);
        platform
    }

    fn normalised(os: &str, architecture: &str, variant: &str) -> Self {
        let (os, architecture, variant) = (os.to_lowercase(), architecture.to_lowercase(), variant.to_lowercase());
        let os = if os == "macos" { "darwin".to_owned() } else { os };
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386" | "i486" | "i586" | "i686" | "x86" | "386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "8" | "v8") => ("arm64", ""),
            ("aarch64" | "arm64", variant) => ("arm64", variant),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "" | "7" | "v7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("arm", "8") => ("arm", "v8"),
            (architecture, variant) => (architecture, variant),
        };
        Self {
            architecture: architecture.to_owned(),
            os,
            os_version: None,
            os_features: Vec::new(),
            variant: (!variant.is_empty()).then(|| variant.to_owned()),
        }
    }
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    /// Parses `os/architecture[/variant]`, `os(version)/…`, or an operating system or architecture alone (the other
    /// half is then the host's).
    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        let invalid = || InvalidPlatform(text.to_owned());
        let legal = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if parts.len() > 3 {
            return Err(invalid());
        }
        let (os, os_version) = match parts[0].split_once('(') {
            Some((os, rest)) => (os, Some(rest.strip_suffix(')').ok_or_else(invalid)?)),
            None => (parts[0], None),
        };
        if !legal(os) || parts[1..].iter().any(|part| !legal(part)) {
            return Err(invalid());
        }
        let host = Self::host();
        let mut platform = match parts[1..] {
            [] if matches!(
                os.to_lowercase().as_str(),
                "linux" | "windows" | "darwin" | "macos" | "freebsd" | "wasip1"
            ) =>
            {
                Self { os: Self::normalised(os, "", "").os, ..host }
            }
            [] => {
                let known = Self::normalised("linux", os, "");
                if !KNOWN_ARCHITECTURES.contains(&known.architecture.as_str()) {
                    return Err(invalid());
                }
                Self { os: host.os, ..known }
            }
            [architecture] => Self::normalised(os, architecture, ""),
            [architecture, variant] => Self::normalised(os, architecture, variant),
            _ => return Err(invalid()),
        };
        platform.os_version = os_version.filter(|version| !version.is_empty()).map(str::to_owned);
        Ok(platform)
    }
}

const KNOWN_ARCHITECTURES: &[&str] = &[
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le", "riscv64",
    "s390x", "wasm",
];

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_become_the_names_of_the_spec() {
        for (text, expected) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("Linux/AMD64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/7", "linux/arm/v7"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("linux/ppc64le", "linux/ppc64le"),
            ("linux/s390x", "linux/s390x"),
            ("linux/i386", "linux/386"),
            ("macos/arm64", "darwin/arm64"),
            ("windows(10.0.17763)/amd64", "windows/amd64"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), expected, "{text}");
        }
        assert_eq!("arm64".parse::<Platform>().unwrap().architecture, "arm64");
        assert_eq!("linux".parse::<Platform>().unwrap().to_string(), Platform::host().to_string());
    }

    #[test]
    fn what_is_no_platform_is_refused() {
        for text in ["", "/", "linux/", "linux//v7", "linux/arm/v7/x", "lin ux/amd64", "gibberish", "windows(10/amd64"]
        {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_missing_variant_is_the_default_one() {
        let platform = |text: &str| text.parse::<Platform>().unwrap();
        assert!(platform("linux/arm64").matches(&Platform { variant: Some("v8".into()), ..platform("linux/arm64") }));
        assert!(platform("linux/arm/v7").matches(&Platform { variant: None, ..platform("linux/arm/v7") }));
        assert!(!platform("linux/arm/v6").matches(&platform("linux/arm/v7")));
        assert!(!platform("linux/amd64").matches(&platform("linux/arm64")));
    }
}
