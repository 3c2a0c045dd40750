//! Formats counters as a table: one line per counter, named by its path.

use serde_json::Value;

/// All numbers in `counters` that are not zero; durations in milliseconds.
pub(crate) fn counters(counters: &Value) -> String {
    let mut lines = Vec::new();
    flatten("", counters, &mut lines);
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    lines.iter().map(|(name, value)| format!("{name:width$}  {value:>12}\n")).collect()
}

fn flatten(path: &str, value: &Value, lines: &mut Vec<(String, String)>) {
    let below = |name: &str| match path {
        "" => name.to_owned(),
        _ => format!("{path} {name}"),
    };
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(name, value)| flatten(&below(name), value, lines))
        }
        Value::Array(members) => (0_usize..)
            .zip(members)
            .for_each(|(index, value)| flatten(&below(&index.to_string()), value, lines)),
        Value::Number(number) => {
            let number = number.as_u64().unwrap_or_default();
            if number != 0 {
                lines.push(line(path, number));
            }
        }
        _ => {}
    }
}

fn line(path: &str, number: u64) -> (String, String) {
    match path.strip_prefix("phases_ns ") {
        Some(phase) => {
            let (whole, part) = (number / 1_000_000, number / 1000 % 1000);
            (format!("phase {phase}"), format!("{whole}.{part:03} ms"))
        }
        None => (path.to_owned(), number.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn prints_a_line_for_each_number_that_is_not_zero() {
        let value = json!({
            "exits": { "total": 7, "hlt": 0 },
            "phases_ns": { "kvm": 1_234_567 },
            "devices": { "0000:01:00.0": { "bars": [{}, { "0x2000": 12 }] } },
        });
        let expected = "\
devices 0000:01:00.0 bars 1 0x2000            12
exits total                                    7
phase kvm                               1.234 ms
";
        assert_eq!(super::counters(&value), expected);
    }
}
