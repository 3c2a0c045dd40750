//! Huge pages of the host.

use std::fmt::Display;
use std::fs;
use std::path::Path;

use crate::config::{HugePages, Memory};

/// The sysfs folder of reserved huge pages.
const FOLDER: &str = "/sys/kernel/mm/hugepages";
/// The sysfs folder of transparent huge pages.
const THP: &str = "/sys/kernel/mm/transparent_hugepage";

/// Checks that enough reserved huge pages are free for `memory`; the error has the remedy.
pub(crate) fn check(memory: &Memory) -> Result<(), String> {
    check_at(Path::new(FOLDER), memory)
}

fn check_at(folder: &Path, memory: &Memory) -> Result<(), String> {
    let Some(page) = memory.hugepages else {
        return Ok(());
    };
    let folder = folder.join(format!("hugepages-{}kB", page.bytes() >> 10));
    let count = |name: &str| -> Option<u64> {
        fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
    };
    let Some(all) = count("nr_hugepages") else {
        return Err(format!("this host has no huge pages of {page}\n  {}", advice(page)));
    };
    // Other mappings hold a claim on reserved pages. The kernel allocates surplus pages on demand.
    let known = |name| count(name).unwrap_or(0);
    let surplus = known("nr_overcommit_hugepages").saturating_sub(known("surplus_hugepages"));
    let free = known("free_hugepages").saturating_sub(known("resv_hugepages"));
    let needed = memory.bytes().div_ceil(page.bytes());
    let missing = needed.saturating_sub(free.saturating_add(surplus));
    match missing {
        0 => Ok(()),
        _ => Err(shortage(needed, free, all, page, missing)),
    }
}

fn shortage(needed: u64, free: u64, all: u64, page: HugePages, missing: u64) -> String {
    let (kib, enough) = (page.bytes() >> 10, all.saturating_add(missing));
    let boot = match page {
        HugePages::Size2M => format!("hugepages={enough}"),
        HugePages::Size1G => format!("hugepagesz=1G hugepages={enough}"),
    };
    format!(
        "the guest needs {needed} huge pages of {page}, and {free} of the host's {all} are free\n  \
         reserve them, as root, with: echo {enough} > {FOLDER}/hugepages-{kib}kB/nr_hugepages; \
         if the kernel reserves fewer (cat the file), add to its command line: {boot}"
    )
}

fn advice(page: HugePages) -> &'static str {
    match page {
        HugePages::Size2M => {
            "the host's kernel requires CONFIG_HUGETLBFS; without hugepages=2M, the kernel uses \
             transparent huge pages"
        }
        HugePages::Size1G => {
            "the host's CPU requires pdpe1gb (in /proc/cpuinfo) and its kernel CONFIG_HUGETLBFS; try \
             hugepages=2M"
        }
    }
}

/// A warning if the user requested transparent huge pages and the kernel has disabled them.
pub(crate) fn thp_is_off(memory: &Memory) -> Option<String> {
    thp_is_off_at(Path::new(THP), memory)
}

fn thp_is_off_at(folder: &Path, memory: &Memory) -> Option<String> {
    if memory.thp != Some(true) {
        return None;
    }
    let (file, good) = match memory.shared {
        true => ("shmem_enabled", "advise"),
        false => ("enabled", "madvise"),
    };
    let chosen = fs::read_to_string(folder.join(file)).unwrap_or_default();
    let off = chosen.is_empty() || ["[never]", "[deny]"].iter().any(|word| chosen.contains(word));
    off.then(|| thp_warning(memory, file, good))
}

fn thp_warning(memory: &dyn Display, file: &str, good: &str) -> String {
    format!(
        "--memory {memory}: transparent huge pages are disabled; enable them with: \
         echo {good} > {THP}/{file}"
    )
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A host with these counts of 2M pages: total, free, reserved, overcommit, surplus.
    fn host(counts: [u64; 5]) -> TempDir {
        let folder = TempDir::new().unwrap();
        let pages = folder.path().join("hugepages-2048kB");
        fs::create_dir(&pages).unwrap();
        let names = [
            "nr_hugepages",
            "free_hugepages",
            "resv_hugepages",
            "nr_overcommit_hugepages",
            "surplus_hugepages",
        ];
        for (name, count) in names.iter().zip(counts) {
            fs::write(pages.join(name), format!("{count}\n")).unwrap();
        }
        folder
    }

    fn checked(counts: [u64; 5], memory: &str) -> Result<(), String> {
        check_at(host(counts).path(), &memory.parse().unwrap())
    }

    #[test]
    fn accepts_enough_free_pages() {
        assert_eq!(checked([0; 5], "1G"), Ok(()), "no huge pages requested");
        assert_eq!(checked([600, 512, 0, 0, 0], "1G,hugepages=2M"), Ok(()));
        assert_eq!(checked([600, 500, 100, 200, 88], "1G,hugepages=2M"), Ok(()));
    }

    #[test]
    fn reports_a_shortage_with_the_command_that_reserves_pages() {
        let text = checked([600, 500, 100, 0, 0], "1G,hugepages=2M").unwrap_err();
        let expected = "the guest needs 512 huge pages of 2M, and 400 of the host's 600 are free\n  \
         reserve them, as root, with: \
         echo 712 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages; \
         if the kernel reserves fewer (cat the file), add to its command line: \
         hugepages=712";
        assert_eq!(text, expected);
    }

    #[test]
    fn reports_an_unsupported_page_size() {
        let text = checked([600, 512, 0, 0, 0], "1G,hugepages=1G").unwrap_err();
        assert!(
            text.starts_with("this host has no huge pages of 1G\n") && text.contains("pdpe1gb"),
            "{text}"
        );
    }

    #[test]
    fn counts_an_unparsable_file_as_zero_pages() {
        let host = host([600, 512, 0, 0, 0]);
        let file = host.path().join("hugepages-2048kB/free_hugepages");
        fs::write(&file, "-1\n").unwrap();
        let memory = "1G,hugepages=2M".parse().unwrap();
        assert!(check_at(host.path(), &memory).unwrap_err().contains("0 of the host's 600"));
    }

    #[test]
    fn warns_if_requested_thp_is_disabled() {
        let folder = TempDir::new().unwrap();
        let write = |name: &str, text| fs::write(folder.path().join(name), text).unwrap();
        let warning = |memory: &str| thp_is_off_at(folder.path(), &memory.parse().unwrap());
        write("enabled", "always [madvise] never\n");
        write("shmem_enabled", "always within_size advise [never] deny force\n");
        assert_eq!((warning("1G,thp=on"), warning("1G,shared=on")), (None, None));
        let text = warning("1G,thp=on,shared=on").unwrap();
        assert!(
            text.ends_with("echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled"),
            "{text}"
        );
        write("enabled", "always madvise [never]\n");
        let text = warning("1G,thp=on").unwrap();
        assert!(
            text.contains("--memory 1024M,thp=on: ")
                && text.ends_with("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"),
            "{text}"
        );
        assert_eq!(warning("1G,thp=off"), None);
    }
}
