//! Interrupt counts of devices, from `/proc/interrupts`.

use std::collections::BTreeMap;
use std::fs;

use guest::Interrupts;

use crate::pci;
use crate::system::{Error, read};

/// The number of interrupts by name, over all CPUs.
pub type Counts = BTreeMap<String, u64>;

/// Reads the counts.
pub fn counts() -> Result<Counts, Error> {
    Ok(parse(&read("/proc/interrupts")?))
}

/// The growth of the counts from `before` to `after`, without those that did not grow.
pub fn since(before: &Counts, after: &Counts) -> Counts {
    let grown = |(name, count): (&String, &u64)| {
        let more = count.saturating_sub(before.get(name).copied().unwrap_or_default());
        (more > 0).then(|| (name.clone(), more))
    };
    after.iter().filter_map(grown).collect()
}

/// How a device interrupts: `msi`, `msix` or `intx`. The kernel lists the MSI and MSI-X vectors of
/// a device in its sysfs folder, each with its kind.
pub fn kind(device: &str) -> Result<String, Error> {
    let vectors = fs::read_dir(format!("{device}/msi_irqs"));
    let vector = vectors.into_iter().flatten().flatten().next();
    vector.map_or(Ok("intx".to_owned()), |vector| {
        Ok(read(&vector.path().to_string_lossy())?.trim().to_owned())
    })
}

/// The interrupts of each function that has a driver.
pub fn of_functions() -> Result<Vec<Interrupts>, Error> {
    let by_number = by_number(&read("/proc/interrupts")?);
    let functions = pci::functions()?.into_iter();
    let with_driver = functions.filter_map(|function| Some((function.address, function.driver?)));
    with_driver
        .map(|(address, driver)| {
            let folder = format!("/sys/bus/pci/devices/{address}");
            let numbers = numbers(&folder)?;
            let counts = numbers.iter().filter_map(|number| by_number.get(number));
            Ok(Interrupts {
                kind: kind(&folder)?,
                vectors: numbers.len(),
                count: counts.fold(0, |sum, count| sum.saturating_add(*count)),
                address,
                driver,
            })
        })
        .collect()
}

/// The IRQ numbers of a device, as in `/proc/interrupts`.
fn numbers(folder: &str) -> Result<Vec<u32>, Error> {
    let vectors = fs::read_dir(format!("{folder}/msi_irqs")).into_iter().flatten().flatten();
    let numbers: Vec<u32> =
        vectors.filter_map(|vector| vector.file_name().to_str()?.parse().ok()).collect();
    match numbers.is_empty() {
        true => Ok(read(&format!("{folder}/irq"))?.trim().parse().into_iter().collect()),
        false => Ok(numbers),
    }
}

fn by_number(text: &str) -> BTreeMap<u32, u64> {
    let line = |line: &str| {
        let (number, rest) = line.split_once(':')?;
        Some((number.trim().parse().ok()?, sum(rest)))
    };
    text.lines().filter_map(line).collect()
}

/// The sum of the numbers at the start of `rest`: one for each CPU.
fn sum(rest: &str) -> u64 {
    rest.split_whitespace().map_while(|word| word.parse::<u64>().ok()).fold(0, u64::saturating_add)
}

/// Parses `/proc/interrupts`. A device's line has a number, a count for each CPU, the chip, the
/// hardware interrupt, and the names at the end. Lines of the architecture (such as `LOC:`) do not
/// begin with a number.
fn parse(text: &str) -> Counts {
    let mut counts = Counts::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let is_device =
            words.next().is_some_and(|w| w.trim_end_matches(':').parse::<u32>().is_ok());
        let rest: Vec<&str> = words.collect();
        if let (true, Some(name)) = (is_device, rest.last()) {
            let entry = counts.entry((*name).to_owned()).or_default();
            *entry = entry.saturating_add(sum(&rest.join(" ")));
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_CPUS: &str = "\
           CPU0       CPU1
  4:         15          1   IO-APIC   4-edge      ttyS0
 24:          0         12  PCI-MSIX-0000:00:02.0   0-edge      nvme0q0
 25:      10000          3  PCI-MSIX-0000:00:02.0   1-edge      nvme0q1
LOC:       1234       5678   Local timer interrupts
";

    #[test]
    fn sums_counts_over_cpus() {
        let counts = parse(TWO_CPUS);
        assert_eq!(counts.get("nvme0q1"), Some(&10_003));
        assert_eq!(counts.get("ttyS0"), Some(&16));
        assert_eq!(counts.len(), 3);
    }

    #[test]
    fn finds_counts_by_number() {
        assert_eq!(by_number(TWO_CPUS), BTreeMap::from([(4, 16), (24, 12), (25, 10_003)]));
    }

    #[test]
    fn keeps_only_counts_that_grew() {
        let before = parse(TWO_CPUS);
        let mut after = before.clone();
        after.insert("nvme0q1".into(), 10_010);
        assert_eq!(since(&before, &after), Counts::from([("nvme0q1".into(), 7)]));
    }
}
