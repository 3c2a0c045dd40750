//! Whether the host has the memory that a guest is to have.

use std::fs::File;
use std::io::Read;

use super::hugepages;
use crate::config::{Memory, MemorySize};
use crate::error::Error;

/// Refuses more RAM than the host has: it would be killed later, when the guest touches it.
pub(crate) fn check(asked: Memory) -> Result<(), Error> {
    if let Some(text) = hugepages::thp_is_off(&asked) {
        log::warn!("{text}");
    }
    check_total(asked.size)?;
    hugepages::check(&asked).map_err(|why| Error::HugePages { asked: asked.to_string(), why })
}

fn check_total(asked: MemorySize) -> Result<(), Error> {
    match meminfo().and_then(|meminfo| kib(&meminfo, "MemTotal:")) {
        Some(kib) if asked.bytes() >> 10 > kib => {
            Err(Error::MemoryLargerThanHost { asked: asked.to_string(), has: kib >> 10 })
        }
        _ => Ok(()),
    }
}

/// What to say where all of the guest's RAM is pinned at once and the host has not that much to
/// spare. It may make room yet, by swapping others out. Huge pages that are reserved are nobody
/// else's.
pub(crate) fn shortage(asked: Memory) -> Option<String> {
    let own = asked.hugepages.is_none();
    own.then(|| told_shortage(asked.size, &meminfo()?)).flatten()
}

/// What the host says of its memory first: what there is, what is free, what is to spare. All of it
/// would take as many reads as a string needs to grow.
fn meminfo() -> Option<String> {
    let mut start = [0; 128];
    let length = File::open("/proc/meminfo").and_then(|mut file| file.read(&mut start)).ok()?;
    Some(String::from_utf8_lossy(start.get(..length)?).into_owned())
}

fn told_shortage(asked: MemorySize, meminfo: &str) -> Option<String> {
    let available = kib(meminfo, "MemAvailable:")?;
    (asked.bytes() >> 10 > available).then(|| {
        format!(
            "--memory {asked}: this host has {}M to spare, and devices need all of it at once; \
             the kernel may kill the VMM for it (dmesg tells): ask for less",
            available >> 10
        )
    })
}

fn kib(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_memory_is_read_from_meminfo() {
        let meminfo = "MemTotal:       24576 kB\nMemFree: 1 kB\n";
        assert_eq!(kib(meminfo, "MemTotal:"), Some(24576));
        assert_eq!(kib("MemFree: 1 kB\n", "MemTotal:"), None);
    }

    #[test]
    fn more_than_is_to_spare_is_told() {
        let asked = "512M".parse().unwrap();
        let told = |available| told_shortage(asked, &format!("MemAvailable: {available} kB\n"));
        let text = told(300 << 10).unwrap();
        assert!(text.starts_with("--memory 512M: this host has 300M to spare"), "{text}");
        assert_eq!((told(512 << 10), told_shortage(asked, "")), (None, None));
    }

    #[test]
    fn more_than_the_host_has_is_refused_by_name() {
        let text = check("1000T".parse().unwrap()).unwrap_err().to_string();
        assert!(text.starts_with("--memory 1048576000M: this host has "), "{text}");
    }
}
