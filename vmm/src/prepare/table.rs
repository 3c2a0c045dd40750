//! Formats the output of the preparing commands.

use super::bind::Moved;
use super::check::{Line, Status};
use super::inventory::{Inventory, Listed};

/// The list of devices, one line each, with titles.
pub(crate) fn devices(devices: &[Listed]) -> String {
    let titles = ["ADDRESS", "GROUP", "DRIVER", "READY", "NAME"].map(str::to_owned);
    let row = |device: &Listed| {
        let group = device.group.map_or_else(|| "-".to_owned(), |group| group.to_string());
        let driver = device.driver.as_deref().unwrap_or("-");
        let ready = match (&device.why, &device.vf_token_of) {
            (Some(why), _) => format!("no: {why}"),
            (None, Some(physical)) => {
                format!("yes, with the VF token of {physical}: vf-token=UUID")
            }
            (None, None) => "yes".to_owned(),
        };
        [&device.address, &group, driver, &ready, &device.name].map(plain)
    };
    let rows: Vec<_> = [titles].into_iter().chain(devices.iter().map(row)).collect();
    aligned(&rows)
}

/// The checks, one line each, with remedies below.
pub(crate) fn checks(lines: &[Line]) -> String {
    let row = |line: &Line| {
        let status = match line.status {
            Status::Ok => "ok",
            Status::Warning => "warning",
            Status::Fail => "FAIL",
        };
        let device = line.device.as_deref().unwrap_or("host");
        let remedy = line.remedy.as_ref().map(|remedy| format!("\nremedy: {remedy}"));
        let what = format!("{}{}", line.what, remedy.unwrap_or_default());
        let what: Vec<_> = what.lines().map(plain).collect();
        [plain(status), plain(device), plain(line.check), what.join("\n    ")]
    };
    let rows: Vec<_> = lines.iter().map(row).collect();
    aligned(&rows)
}

/// The moved devices with the members of their groups.
pub(crate) fn moved(host: &Inventory, moved: &[Moved]) -> String {
    let of = |driver: &Option<String>| driver.clone().unwrap_or_else(|| "no driver".to_owned());
    let line = |moved: &Moved| {
        let (before, after) = (of(&moved.before.driver), of(&moved.after.driver));
        let done = match before == after {
            true => format!("{}: {after}, as before", moved.address),
            false => format!("{}: {after} (was: {before})", moved.address),
        };
        let group = host.sysfs.group(moved.address);
        let others = group.map(|group| host.sysfs.members(group)).unwrap_or_default();
        let others = others.into_iter().filter(|member| *member != moved.address);
        let other = |member| format!("{member} ({})", of(&host.sysfs.driver(member)));
        let others: Vec<_> = others.map(other).collect();
        match group {
            Some(group) if others.is_empty() => {
                plain(format!("{done}; alone in group {group}")) + "\n"
            }
            Some(group) => {
                plain(format!("{done}; group {group} also has {}", others.join(", "))) + "\n"
            }
            None => plain(&done) + "\n",
        }
    };
    moved.iter().map(line).collect()
}

/// Replaces control characters, which a terminal would interpret.
fn plain(text: impl AsRef<str>) -> String {
    let visible = |c: char| if c.is_control() { '?' } else { c };
    text.as_ref().chars().map(visible).collect()
}

/// Aligns columns to their widest cell, except the last column.
fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<_> = (0..N.saturating_sub(1)).map(width).chain([0]).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ") + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligns_columns_and_replaces_control_characters() {
        let device =
            |address: &str, group, driver: Option<&str>, why: Option<&str>, name: &str| Listed {
                address: address.to_owned(),
                name: name.to_owned(),
                id: String::new(),
                class: String::new(),
                group,
                driver: driver.map(str::to_owned),
                ready: why.is_none(),
                vf_token_of: None,
                why: why.map(str::to_owned),
            };
        let list = [
            device("0000:01:00.0", Some(14), Some("vfio-pci"), None, "NVMe"),
            device("0000:02:00.0", None, None, Some("because"), "\u{1b}[2J\nbell\u{7}"),
        ];
        let expected = "\
ADDRESS       GROUP  DRIVER    READY        NAME
0000:01:00.0  14     vfio-pci  yes          NVMe
0000:02:00.0  -      -         no: because  ?[2J?bell?
";
        assert_eq!(devices(&list), expected);
    }

    #[test]
    fn prints_the_remedy_below_its_check() {
        let line = |status, remedy: Option<&str>| Line {
            check: "iommu",
            device: None,
            status,
            what: "found\nplan".to_owned(),
            remedy: remedy.map(str::to_owned),
        };
        let lines = [line(Status::Ok, None), line(Status::Fail, Some("do it"))];
        let expected = "\
ok    host  iommu  found
    plan
FAIL  host  iommu  found
    plan
    remedy: do it
";
        assert_eq!(checks(&lines), expected);
    }
}
