//! The rows of `kubectl get nixoshosts --watch`, aligned below one heading, without those that say nothing new.
//!
//! kubectl widens a column when something longer comes, and leaves the heading where it was.

use std::collections::HashMap;

/// The widths of the columns here: wide enough for what is to come.
const WIDTHS: [(&str, usize); 6] = [("NAME", 8), ("READY", 10), ("UPTODATE", 11), ("REVISION", 15), ("SYSTEM", 10), ("AGE", 4)];

/// What was shown so far.
#[derive(Default)]
pub(crate) struct Table {
    starts: Vec<usize>,
    shown: HashMap<String, Vec<String>>,
}

impl Table {
    /// The row as it is to be shown, unless only its age is new.
    pub(crate) fn row(&mut self, line: &str) -> Option<String> {
        let cells = self.cells(line)?;
        let (_, known) = cells.split_last()?;
        if self.shown.insert(known[0].clone(), known.to_vec()).is_some_and(|before| before == known) {
            return None;
        }
        let row = cells.iter().zip(WIDTHS).fold(String::new(), |row, (cell, (_, width))| row + &format!("{cell:width$}"));
        Some(row.trim_end().to_owned())
    }

    /// The cells of a line, empty ones too: a word belongs to the column that began last at or before it.
    fn cells(&mut self, line: &str) -> Option<Vec<String>> {
        let words = words(line);
        if words.first()?.1 == WIDTHS[0].0 {
            self.starts = words.iter().map(|(start, _)| *start).collect();
        } else if words.len() == self.starts.len() {
            self.starts = words.iter().map(|(start, _)| *start).collect();
        }
        let mut cells = vec![String::new(); WIDTHS.len()];
        for (start, word) in words {
            let column = self.starts.iter().rposition(|begin| *begin <= start)?;
            cells.get_mut(column)?.push_str(word);
        }
        Some(cells)
    }
}

fn words(line: &str) -> Vec<(usize, &str)> {
    line.split(' ')
        .scan(0, |offset, word| {
            let start = *offset;
            *offset += word.chars().count() + 1;
            Some((start, word))
        })
        .filter(|(_, word)| !word.is_empty())
        .collect()
}
