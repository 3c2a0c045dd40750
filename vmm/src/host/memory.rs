//! Checks that the host has enough memory for the guest.

use std::fs::File;
use std::io::Read;

use super::hugepages;
use crate::config::{Memory, MemorySize};
use crate::error::Error;

/// Refuses more RAM than the host has: the kernel would kill the VMM when the guest touches it.
/// Warns if the host has too little available memory for RAM that `is_pinned` all at once. The
/// kernel may still free memory by swapping.
pub(crate) fn check(asked: Memory, is_pinned: bool) -> Result<(), Error> {
    if let Some(text) = hugepages::thp_is_off(&asked) {
        log::warn!("{text}");
    }
    let meminfo = meminfo().unwrap_or_default();
    check_total(asked.size, &meminfo)?;
    hugepages::check(&asked).map_err(|why| Error::HugePages { asked: asked.to_string(), why })?;
    // Reserved huge pages are not part of the available memory.
    if is_pinned && asked.hugepages.is_none() {
        shortage_warning(asked.size, &meminfo).inspect(|text| log::warn!("{text}"));
    }
    Ok(())
}

fn check_total(asked: MemorySize, meminfo: &str) -> Result<(), Error> {
    match kib(meminfo, "MemTotal:") {
        Some(kib) if asked.bytes() >> 10 > kib => {
            Err(Error::MemoryLargerThanHost { asked: asked.to_string(), has: kib >> 10 })
        }
        _ => Ok(()),
    }
}

/// The first lines of `/proc/meminfo`: total, free and available memory. Reading the whole file
/// would take one read for each growth of a string.
fn meminfo() -> Option<String> {
    let mut start = [0; 128];
    let length = File::open("/proc/meminfo").and_then(|mut file| file.read(&mut start)).ok()?;
    Some(String::from_utf8_lossy(start.get(..length)?).into_owned())
}

fn shortage_warning(asked: MemorySize, meminfo: &str) -> Option<String> {
    let available = kib(meminfo, "MemAvailable:")?;
    (asked.bytes() >> 10 > available).then(|| {
        format!(
            "--memory {asked}: this host has {}M available, and devices need all of the memory at \
             once; the kernel may kill the VMM for it (see 'dmesg'): reduce --memory",
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
    fn reads_the_hosts_memory_from_meminfo() {
        let meminfo = "MemTotal:       24576 kB\nMemFree: 1 kB\n";
        assert_eq!(kib(meminfo, "MemTotal:"), Some(24576));
        assert_eq!(kib("MemFree: 1 kB\n", "MemTotal:"), None);
    }

    #[test]
    fn warns_of_more_than_is_available() {
        let asked = "512M".parse().unwrap();
        let warning =
            |available| shortage_warning(asked, &format!("MemAvailable: {available} kB\n"));
        let text = warning(300 << 10).unwrap();
        assert!(text.starts_with("--memory 512M: this host has 300M available"), "{text}");
        assert_eq!((warning(512 << 10), shortage_warning(asked, "")), (None, None));
    }

    #[test]
    fn refuses_more_than_the_host_has() {
        let text = check("1000T".parse().unwrap(), false).unwrap_err().to_string();
        assert!(text.starts_with("--memory 1048576000M: this host has only "), "{text}");
    }
}
