//! The limits of this process (getrlimit(2)).

use std::io;

use nix::sys::resource::{Resource, setrlimit};

/// A limit of the process. Each has an option of the shell's `ulimit`, a setting of systemd and a
/// name in `/etc/security/limits.conf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    OpenFiles,
    Threads,
    AddressSpace,
    Data,
    FileSize,
}

/// The values of a limit; `u64::MAX` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rlimit {
    /// The value in force.
    pub(crate) soft: u64,
    /// The value up to which each process may raise it.
    pub(crate) hard: u64,
}

impl Kind {
    /// Its name in `/proc/self/limits`, and in getrlimit(2).
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::OpenFiles => ("Max open files", "RLIMIT_NOFILE"),
            Self::Threads => ("Max processes", "RLIMIT_NPROC"),
            Self::AddressSpace => ("Max address space", "RLIMIT_AS"),
            Self::Data => ("Max data size", "RLIMIT_DATA"),
            Self::FileSize => ("Max file size", "RLIMIT_FSIZE"),
        }
    }

    fn resource(self) -> Resource {
        match self {
            Self::OpenFiles => Resource::RLIMIT_NOFILE,
            Self::Threads => Resource::RLIMIT_NPROC,
            Self::AddressSpace => Resource::RLIMIT_AS,
            Self::Data => Resource::RLIMIT_DATA,
            Self::FileSize => Resource::RLIMIT_FSIZE,
        }
    }

    /// The name of getrlimit(2).
    pub(crate) fn name(self) -> &'static str {
        self.names().1
    }

    /// How to raise the limit to `value`, which is in bytes for sizes.
    pub(crate) fn remedy(self, value: u64) -> String {
        let kib = value.div_ceil(1024);
        let (ulimit, systemd, conf) = match self {
            Self::OpenFiles => (format!("-n {value}"), "LimitNOFILE", format!("nofile {value}")),
            Self::Threads => (format!("-u {value}"), "LimitNPROC", format!("nproc {value}")),
            Self::AddressSpace => (format!("-v {kib}"), "LimitAS", format!("as {kib}")),
            Self::Data => (format!("-d {kib}"), "LimitDATA", format!("data {kib}")),
            Self::FileSize => (format!("-f {kib}"), "LimitFSIZE", format!("fsize {kib}")),
        };
        format!(
            "raise it with: 'ulimit {ulimit}', '{systemd}={value}' in a systemd unit, or '{conf}' \
             in /etc/security/limits.conf"
        )
    }

    /// The limit in `/proc/self/limits`; `None` if the text has none.
    pub(crate) fn of(self, limits: &str) -> Option<Rlimit> {
        let line = limits.lines().find_map(|line| line.strip_prefix(self.names().0))?;
        let mut values = line.split_whitespace().map(|value| match value {
            "unlimited" => Some(u64::MAX),
            number => number.parse().ok(),
        });
        Some(Rlimit { soft: values.next()??, hard: values.next()?? })
    }

    /// Raises the limit in force to `value`, which is at most the hard limit.
    pub(crate) fn raise(self, limit: Rlimit, value: u64) -> io::Result<()> {
        Ok(setrlimit(self.resource(), value, limit.hard)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: &str = "\
Limit                     Soft Limit           Hard Limit           Units     \n\
Max file size             unlimited            unlimited            bytes     \n\
Max data size             1048576              unlimited            bytes     \n\
Max processes             127                  4096                 processes \n\
Max open files            1024                 524288               files     \n\
Max address space         unlimited            x                    bytes     \n";

    #[test]
    fn reads_both_values_of_each_limit() {
        let cases = [
            (Kind::FileSize, Some((u64::MAX, u64::MAX))),
            (Kind::Data, Some((1 << 20, u64::MAX))),
            (Kind::Threads, Some((127, 4096))),
            (Kind::OpenFiles, Some((1024, 524_288))),
            (Kind::AddressSpace, None),
        ];
        for (kind, expected) in cases {
            let expected = expected.map(|(soft, hard)| Rlimit { soft, hard });
            assert_eq!(kind.of(LIMITS), expected, "{kind:?}");
            assert_eq!(kind.of(""), None);
        }
    }

    #[test]
    fn names_every_way_to_raise_a_limit() {
        let cases = [
            (Kind::OpenFiles, ["ulimit -n 3000'", "'LimitNOFILE=3000'", "'nofile 3000'"]),
            (Kind::Threads, ["ulimit -u 3000'", "'LimitNPROC=3000'", "'nproc 3000'"]),
            (Kind::AddressSpace, ["ulimit -v 3'", "'LimitAS=3000'", "'as 3'"]),
            (Kind::Data, ["ulimit -d 3'", "'LimitDATA=3000'", "'data 3'"]),
            (Kind::FileSize, ["ulimit -f 3'", "'LimitFSIZE=3000'", "'fsize 3'"]),
        ];
        for (kind, parts) in cases {
            let text = kind.remedy(3000);
            parts.iter().for_each(|part| assert!(text.contains(part), "no {part} in {text}"));
        }
    }
}
