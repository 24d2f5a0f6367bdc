//! As much of PromQL as it takes to know which metrics a query names.

use nixos_host_controller::metrics::catalogue::{Kind, Series};

const WORDS: [&str; 12] = ["and", "or", "unless", "bool", "offset", "inf", "nan", "sum", "count", "min", "max", "avg"];
const LISTS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// The names under which a metric can be asked for.
pub(crate) fn names(series: &Series) -> Vec<String> {
    match series.kind {
        Kind::Histogram => ["_bucket", "_sum", "_count"].map(|suffix| format!("{}{suffix}", series.name)).to_vec(),
        _ => vec![series.name.to_owned()],
    }
}

/// The metrics in a query, each with the labels that it is selected by.
pub(crate) fn metrics(query: &str) -> Vec<(String, Vec<String>)> {
    let (mut found, mut rest) = (Vec::new(), query);
    while let Some(first) = rest.chars().next() {
        if first.is_ascii_alphabetic() || first == '_' {
            let (word, after) = rest.split_at(rest.find(|c: char| !(c.is_ascii_alphanumeric() || "_:".contains(c))).unwrap_or(rest.len()));
            let after = after.trim_start();
            rest = after;
            if LISTS.contains(&word) {
                rest = after.strip_prefix('(').map_or(after, |inside| inside.split_once(')').expect("a list ends").1);
            } else if !after.starts_with('(') && !WORDS.contains(&word) {
                let (labels, after) = selector(after);
                found.push((word.to_owned(), labels));
                rest = after;
            }
        } else if first == '"' {
            rest = rest[1..].split_once('"').expect("a string ends").1;
        } else if first == '[' {
            rest = rest.split_once(']').expect("a range ends").1;
        } else if first.is_ascii_digit() {
            rest = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '.');
        } else {
            rest = &rest[first.len_utf8()..];
        }
    }
    found
}

/// The labels between braces, and what follows them.
fn selector(text: &str) -> (Vec<String>, &str) {
    let Some(mut rest) = text.strip_prefix('{') else { return (Vec::new(), text) };
    let mut labels = Vec::new();
    while !rest.starts_with('}') {
        let (label, after) = rest.split_once(['=', '!']).expect("a matcher has an operator");
        labels.push(label.trim_matches([',', ' ']).to_owned());
        rest = after.split_once('"').expect("a value begins").1.split_once('"').expect("a value ends").1;
    }
    (labels, &rest[1..])
}

#[test]
fn metrics_and_the_labels_they_are_selected_by_are_found() {
    let query = r#"sum by (le) (rate(a_bucket{b="c d",e=~"f(g)"}[$__rate_interval])) / 3e2 > bool h:i and on (j) k unless vector(0) * on (l) group_left (m) n"#;
    let expected = [("a_bucket", vec!["b", "e"]), ("h:i", vec![]), ("k", vec![]), ("n", vec![])];
    let expected = expected.map(|(name, labels)| (name.to_owned(), labels.into_iter().map(str::to_owned).collect()));
    assert_eq!(metrics(query), expected);
}
