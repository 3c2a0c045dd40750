//! Mapping memory for DMA, and the start of a guest: by type1 and by iommufd, in one L1.

use lab::protocol::{Ending, Program};
use lab::{Device, Error, Kernel, L1, Lab, Machine, place, say};
use serde::{Deserialize, Serialize};

use super::measure::{Boot, Guest, Vmm};
use super::table::Goal;
use super::{booted, keep};

const SIZES_GIB: [u64; 3] = [1, 4, 8];
/// The RAM that L1 needs beside the memory.
const OWN_MIB: u64 = 1536;
/// The goal: how much longer a start by iommufd may take than one by type1, in thousandths.
const MOST_PER_MILLE: u64 = 1020;

/// The times of one call for one size, as the program `conformance` prints them.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    call: String,
    bytes: u64,
    map_ns: Option<u64>,
    unmap_ns: Option<u64>,
}

/// Measures memory of up to `most_mib`; returns whether the goal is met.
pub fn run(lab: &Lab, kernel: Kernel, most_mib: u64, rounds: u32) -> Result<bool, Error> {
    let sizes = SIZES_GIB.into_iter().filter(|gib| gib.saturating_mul(1024) <= most_mib);
    let sizes: Vec<u64> = sizes.collect();
    let most = sizes.last().copied().unwrap_or_default().saturating_mul(1024);
    let machine = Machine::new(kernel)
        .guest_kernel(Kernel::Small)
        .devices(&[Device::Nvme, Device::Nvme])
        .memory_mib(u32::try_from(most.saturating_add(OWN_MIB)).unwrap_or(u32::MAX))
        .with_host_share();
    let mut l1 = booted(lab, &machine)?;
    let second = machine.address(1);
    l1.bind(&second, Some("vfio-pci"))?;
    say("mapping memory");
    let rows = map(&mut l1, [machine.address(0), second], &sizes)?;
    let starts = starts(&mut l1, &Guest::with(&[machine.address(0)]), rounds)?;
    let text = format!("{}\n{}", table(kernel, &sizes, &rows), table_of_starts(starts, rounds));
    let goal = Goal::new(
        "start by iommufd, in thousandths of that by type1:",
        per_mille(starts),
        MOST_PER_MILLE,
        "",
    );
    println!("{text}\n{goal}");
    keep("map", &text, &(rows, starts))?;
    Ok(goal.is_met())
}

fn map(l1: &mut L1, [type1, iommufd]: [String; 2], gibs: &[u64]) -> Result<Vec<Row>, Error> {
    let gibs: Vec<String> = gibs.iter().map(u64::to_string).collect();
    let sizes = gibs.join(",");
    let arguments =
        [place::CONFORMANCE, "--device", &type1, "--device", &iommufd, "--map-sizes", &sizes];
    let run =
        l1.run(Program { arguments: arguments.map(str::to_owned).to_vec(), ..Program::default() })?;
    match run.finished.ending {
        Ending::Status(0) => serde_json::from_str(&run.stdout).map_err(Error::json("the times")),
        _ => Err(Error::Command { command: "conformance --map-sizes".into(), why: run.stderr }),
    }
}

/// The medians of the time from exec to the guest's init by type1 and by iommufd, in turns, after
/// one boot of each that is not counted.
fn starts(l1: &mut L1, guest: &Guest, rounds: u32) -> Result<[u64; 2], Error> {
    let mut boots = [Vec::new(), Vec::new()];
    for round in 0..=rounds {
        say(&format!("starts: round {round} of {rounds}"));
        for (more, boots) in ["--iommu type1", "--iommu iommufd"].into_iter().zip(&mut boots) {
            let boot: Boot = Vmm::Ours.start(l1, guest, 0, more)?;
            boots.extend((round > 0).then_some(boot.to_init_ns));
        }
    }
    Ok(boots.map(|mut boots| {
        boots.sort_unstable();
        boots.get(boots.len() / 2).copied().unwrap_or_default()
    }))
}

fn per_mille([type1, iommufd]: [u64; 2]) -> u64 {
    iommufd.saturating_mul(1000).checked_div(type1).unwrap_or(u64::MAX)
}

fn milliseconds(nanoseconds: u64) -> String {
    format!("{:.1}", nanoseconds as f64 / 1e6)
}

fn table(kernel: Kernel, gibs: &[u64], rows: &[Row]) -> String {
    let sizes: Vec<String> = gibs.iter().map(|gib| format!("{gib} GiB")).collect();
    let mut text = format!(
        "Mapping memory of a memfd in pages of 4 KiB for DMA, on {}, in ms of L1's time (map / unmap):\n\n\
         | | {} |\n|---{}|\n",
        kernel.name(),
        sizes.join(" | "),
        "|---".repeat(gibs.len())
    );
    for call in ["VFIO_IOMMU_MAP_DMA", "IOMMU_IOAS_MAP", "IOMMU_IOAS_MAP_FILE"] {
        let own = rows.iter().filter(|row| row.call == call);
        let cells: Vec<String> = own.map(cell).collect();
        text.push_str(&format!("| `{call}` | {} |\n", cells.join(" | ")));
    }
    text
}

fn cell(row: &Row) -> String {
    match (row.map_ns, row.unmap_ns) {
        (Some(map), Some(unmap)) => format!("{} / {}", milliseconds(map), milliseconds(unmap)),
        _ => "not in this kernel".to_owned(),
    }
}

fn table_of_starts([type1, iommufd]: [u64; 2], rounds: u32) -> String {
    format!(
        "A guest (512 MiB, one NVMe) from exec to init, medians of {rounds} rounds in turns:\n\n\
         | | type1 | iommufd |\n|---|---|---|\n| ms | {} | {} |\n",
        milliseconds(type1),
        milliseconds(iommufd)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_the_kernel_lacks_is_named() {
        let row = |call: &str, map_ns| Row {
            call: call.into(),
            bytes: 1 << 30,
            map_ns,
            unmap_ns: map_ns.map(|ns: u64| ns / 2),
        };
        let rows = [row("IOMMU_IOAS_MAP", Some(3_000_000)), row("IOMMU_IOAS_MAP_FILE", None)];
        let text = table(Kernel::Small, &[1], &rows);
        assert!(text.contains("| `IOMMU_IOAS_MAP` | 3.0 / 1.5 |"), "{text}");
        assert!(text.contains("| `IOMMU_IOAS_MAP_FILE` | not in this kernel |"), "{text}");
    }

    #[test]
    fn a_start_without_a_measurement_misses_the_goal() {
        assert_eq!(per_mille([1000, 1020]), 1020);
        assert!(per_mille([0, 1]) > MOST_PER_MILLE);
    }
}
