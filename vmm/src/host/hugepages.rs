//! What the host has of huge pages.

use std::fmt::Display;
use std::fs;
use std::path::Path;

use crate::config::{HugePages, Memory};

/// Where the kernel tells of them, and takes orders.
const FOLDER: &str = "/sys/kernel/mm/hugepages";
/// Whether the kernel makes huge pages of small ones.
const THP: &str = "/sys/kernel/mm/transparent_hugepage";

/// Whether the huge pages that `memory` asks for can be had, if any; or what to say.
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
    // Reserved ones are promised to others. Surplus ones are made when they are needed, if they can
    // be.
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
        "it needs {needed} huge pages of {page}, and {free} of the host's {all} are free\n  \
         reserve them, as root, with: echo {enough} > {FOLDER}/hugepages-{kib}kB/nr_hugepages; if the kernel finds \
         fewer (cat the file), boot it with: {boot}"
    )
}

fn advice(page: HugePages) -> &'static str {
    match page {
        HugePages::Size2M => {
            "its kernel needs CONFIG_HUGETLBFS; without hugepages=2M, it makes huge pages of small ones (thp)"
        }
        HugePages::Size1G => {
            "its CPU must have them (pdpe1gb in /proc/cpuinfo) and its kernel CONFIG_HUGETLBFS; try hugepages=2M"
        }
    }
}

/// What to say where huge pages were asked for, of small ones, and the kernel makes none.
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
    off.then(|| told(memory, file, good))
}

fn told(memory: &dyn Display, file: &str, good: &str) -> String {
    format!(
        "--memory {memory}: the kernel makes no huge pages; let it with: echo {good} > {THP}/{file}"
    )
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A host with these counts of pages of 2M: all, free, promised, overcommitted, surplus.
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
    fn enough_free_pages_are_enough() {
        assert_eq!(checked([0; 5], "1G"), Ok(()), "none are asked for");
        assert_eq!(checked([600, 512, 0, 0, 0], "1G,hugepages=2M"), Ok(()));
        assert_eq!(checked([600, 500, 100, 200, 88], "1G,hugepages=2M"), Ok(()));
    }

    #[test]
    fn too_few_are_told_with_the_command_that_reserves_the_rest() {
        let text = checked([600, 500, 100, 0, 0], "1G,hugepages=2M").unwrap_err();
        let expected = "it needs 512 huge pages of 2M, and 400 of the host's 600 are free\n  reserve them, as root, with: \
                        echo 712 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages; if the kernel finds fewer \
                        (cat the file), boot it with: hugepages=712";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_size_that_the_host_has_not_is_told() {
        let text = checked([600, 512, 0, 0, 0], "1G,hugepages=1G").unwrap_err();
        assert!(
            text.starts_with("this host has no huge pages of 1G\n") && text.contains("pdpe1gb"),
            "{text}"
        );
    }

    #[test]
    fn files_that_are_no_numbers_are_no_pages() {
        let host = host([600, 512, 0, 0, 0]);
        let file = host.path().join("hugepages-2048kB/free_hugepages");
        fs::write(&file, "-1\n").unwrap();
        let memory = "1G,hugepages=2M".parse().unwrap();
        assert!(check_at(host.path(), &memory).unwrap_err().contains("0 of the host's 600"));
    }

    #[test]
    fn thp_that_was_asked_for_and_is_off_is_told() {
        let folder = TempDir::new().unwrap();
        let write = |name: &str, text| fs::write(folder.path().join(name), text).unwrap();
        let told = |memory: &str| thp_is_off_at(folder.path(), &memory.parse().unwrap());
        write("enabled", "always [madvise] never\n");
        write("shmem_enabled", "always within_size advise [never] deny force\n");
        assert_eq!((told("1G,thp=on"), told("1G,shared=on")), (None, None));
        let text = told("1G,thp=on,shared=on").unwrap();
        assert!(
            text.ends_with("echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled"),
            "{text}"
        );
        write("enabled", "always madvise [never]\n");
        let text = told("1G,thp=on").unwrap();
        assert!(
            text.contains("--memory 1024M,thp=on: ")
                && text.ends_with("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"),
            "{text}"
        );
        assert_eq!(told("1G,thp=off"), None);
    }
}
