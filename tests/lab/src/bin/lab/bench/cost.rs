//! The cost of an I/O operation, and tables of the costs of several rounds.

use serde::Serialize;

use super::io::Host;

/// KVM's counters of exits by reason (Documentation/virt/kvm: debugfs), with the name of each.
pub const REASONS: [(&str, &str); 3] = [
    ("host interrupt", "/sys/kernel/debug/kvm/irq_exits"),
    ("HLT", "/sys/kernel/debug/kvm/halt_exits"),
    ("interrupt window", "/sys/kernel/debug/kvm/irq_window_exits"),
];

/// The counters at the end of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    pub exits: f64,
    pub userspace_exits: f64,
    /// The exits by reason, in the order of [`REASONS`].
    pub reasons: [f64; REASONS.len()],
    pub interrupts: f64,
    pub ns: f64,
    pub idle_ns: f64,
}

/// The cost of one operation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// The name of the workload.
    pub what: String,
    /// What ran the driver.
    pub host: Host,
    /// Exits of any kind.
    pub exits: f64,
    /// Exits to userspace.
    pub userspace_exits: f64,
    /// Exits by reason, in the order of [`REASONS`].
    pub reasons: [f64; REASONS.len()],
    /// Interrupts of the device that its driver handled.
    pub interrupts: f64,
    /// Instructions of L1, with those of the guest and of the VMM, and without the idle loop.
    pub instructions: f64,
    /// Microseconds of L1's time.
    pub us: f64,
}

impl Cost {
    /// The cost from the counters at the end of each of the three runs. The interrupts are those of
    /// each run alone.
    pub fn new(
        what: String,
        host: Host,
        operations: u64,
        [first, second, third]: &[Counts; 3],
    ) -> Self {
        let operations = operations as f64;
        let of_one = |of: &dyn Fn(&Counts) -> f64| {
            let [few, many] = [of(second) - of(first), of(third) - of(second)];
            (many - few) / operations
        };
        let ns = of_one(&|counts| counts.ns);
        let reason =
            |index: usize| of_one(&|counts| counts.reasons.get(index).copied().unwrap_or_default());
        Self {
            what,
            host,
            exits: of_one(&|counts| counts.exits),
            userspace_exits: of_one(&|counts| counts.userspace_exits),
            reasons: std::array::from_fn(reason),
            interrupts: (third.interrupts - second.interrupts) / operations,
            instructions: ns - of_one(&|counts| counts.idle_ns),
            us: ns / 1e3,
        }
    }

    /// Exits for each interrupt; 0 without interrupts.
    fn by_interrupt(&self) -> f64 {
        if self.interrupts > 0.0 { self.exits / self.interrupts } else { 0.0 }
    }

    /// Exits for another reason. Most of them are writes of the local APIC: the end of an interrupt
    /// and the timer.
    fn other_exits(&self) -> f64 {
        self.exits - self.reasons.iter().sum::<f64>()
    }
}

/// A figure: its name, its value, and the number of its digits after the point.
type Figure = (&'static str, fn(&Cost) -> f64, usize);

const FIGURES: [Figure; 6] = [
    ("interrupts", |cost| cost.interrupts, 2),
    ("exits", |cost| cost.exits, 2),
    ("exits for an interrupt", Cost::by_interrupt, 2),
    ("to userspace", |cost| cost.userspace_exits, 3),
    ("instructions", |cost| cost.instructions, 0),
    ("us", |cost| cost.us, 2),
];

/// The costs as a Markdown table: of each figure the median of all rounds, and its range if the
/// figure varies.
pub fn table(costs: &[Cost]) -> String {
    let figures = FIGURES.map(|(name, value, digits)| (name.to_owned(), value, digits));
    rows(
        costs,
        &figures.map(|(name, value, digits)| Column { name, value: Box::new(value), digits }),
    )
}

/// The exits by reason, in the same form.
pub fn reasons(costs: &[Cost]) -> String {
    let named = REASONS.iter().enumerate().map(|(index, (name, _))| Column {
        name: (*name).to_owned(),
        value: Box::new(move |cost| cost.reasons.get(index).copied().unwrap_or_default()),
        digits: 2,
    });
    let other = Column { name: "other".into(), value: Box::new(Cost::other_exits), digits: 2 };
    rows(costs, &named.chain([other]).collect::<Vec<_>>())
}

struct Column {
    name: String,
    value: Box<dyn Fn(&Cost) -> f64>,
    digits: usize,
}

fn rows(costs: &[Cost], columns: &[Column]) -> String {
    let names: String = columns.iter().map(|column| format!(" {} |", column.name)).collect();
    let mut text = format!("| | VMM |{names}\n|---|---|{}\n", "---|".repeat(columns.len()));
    for same in groups(costs) {
        let Some(cost) = same.first() else { continue };
        let cells: String =
            columns.iter().map(|column| format!(" {} |", cell(&same, column))).collect();
        text.push_str(&format!("| {} | {} |{cells}\n", cost.what, cost.host.name()));
    }
    text
}

/// The medians of a figure, with the names of workload and VMM.
pub fn medians(costs: &[Cost], value: fn(&Cost) -> f64) -> Vec<(String, f64)> {
    let of = |same: Vec<&Cost>| {
        let cost = same.first()?;
        let name = format!("{}: {}", cost.what, cost.host.name());
        let values = sorted(&same, &value);
        Some((name, values.get(values.len() / 2).copied().unwrap_or_default()))
    };
    groups(costs).into_iter().filter_map(of).collect()
}

/// The costs of each workload with each VMM, in the order of the first round.
fn groups(costs: &[Cost]) -> Vec<Vec<&Cost>> {
    let mut groups: Vec<Vec<&Cost>> = Vec::new();
    for cost in costs {
        let is_own = |group: &&mut Vec<&Cost>| {
            group.first().is_some_and(|own| own.what == cost.what && own.host == cost.host)
        };
        match groups.iter_mut().find(is_own) {
            Some(group) => group.push(cost),
            None => groups.push(vec![cost]),
        }
    }
    groups
}

fn sorted(costs: &[&Cost], value: &dyn Fn(&Cost) -> f64) -> Vec<f64> {
    let mut values: Vec<f64> = costs.iter().map(|cost| value(cost)).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The median, and the smallest and the largest value if they differ.
fn cell(costs: &[&Cost], column: &Column) -> String {
    let values = sorted(costs, &column.value);
    let shown = |value: Option<&f64>| {
        let digits = column.digits;
        format!("{:.digits$}", value.copied().unwrap_or_default())
    };
    let [least, middle, most] =
        [values.first(), values.get(values.len() / 2), values.last()].map(shown);
    if least == most { middle } else { format!("{middle} ({least} to {most})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(operations: f64, steps: f64, interrupts: f64) -> Counts {
        Counts {
            exits: 2.0 * operations + 500.0 * steps,
            userspace_exits: 400.0 * steps,
            reasons: [operations, 0.5 * operations, 0.0],
            interrupts,
            ns: 10_000.0 * operations + 1e6 * steps,
            idle_ns: 4_000.0 * operations + 5e5 * steps,
        }
    }

    #[test]
    fn cost_of_an_operation_excludes_the_cost_of_a_run() {
        let (few, many) = (100.0, 1000.0);
        let counts = [
            at(few, 1.0, few),
            at(2.0 * few + 1.0, 2.0, few + 1.0),
            at(3.0 * few + 2.0 + many, 3.0, few + 1.0 + many),
        ];
        let cost = Cost::new(String::new(), Host::Nobody, 1000, &counts);
        let found = [cost.exits, cost.userspace_exits, cost.interrupts, cost.instructions, cost.us];
        let expected = [2.0, 0.0, 1.0, 6000.0, 10.0];
        let is_close = |(found, expected): (f64, f64)| (found - expected).abs() < 1e-6;
        assert!(found.into_iter().zip(expected).all(is_close), "{found:?}");
        assert!((cost.other_exits() - 0.5).abs() < 1e-6, "{cost:?}");
    }

    #[test]
    fn table_has_the_median_and_the_range_of_the_rounds() {
        let cost = |exits: f64| {
            let counts =
                [0.0, 0.0, 1.0].map(|share| Counts { exits: share * exits, ..at(0.0, 0.0, share) });
            Cost::new("reads".into(), Host::Nobody, 1, &counts)
        };
        let text = table(&[3.0, 1.0, 2.0].map(cost));
        let row =
            "| reads | L1, no VMM | 1.00 | 2.00 (1.00 to 3.00) | 2.00 (1.00 to 3.00) | 0.000 |";
        assert!(text.contains(row), "{text}");
        assert_eq!(text.lines().count(), 3);
    }
}
