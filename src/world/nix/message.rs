//! What git and Nix say, made fit for a status: no colours, no control characters, bounded.

/// Characters of a message that are kept.
pub(super) const MESSAGE_LIMIT: usize = 2000;

/// Characters of a line of a builder's log that are kept.
pub(super) const LINE_LIMIT: usize = 500;

/// Without escape sequences and control characters (other than newlines and tabs), trimmed, and no longer than `limit`.
pub(super) fn clean(text: &str, limit: usize) -> String {
    let mut kept = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            // CSI sequences: ESC [ parameters, then one letter. Other escapes have one character more.
            '\u{1b}' => {
                if characters.next() == Some('[') {
                    characters.by_ref().find(|c| ('\u{40}'..='\u{7e}').contains(c));
                }
            }
            '\n' | '\t' => kept.push(character),
            _ if character.is_control() => (),
            _ => kept.push(character),
        }
    }
    cut(kept.trim(), limit)
}

/// No more than `limit` characters, the last of them an ellipsis if there were more.
pub(super) fn cut(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        None => text.to_owned(),
        Some(_) => text.chars().take(limit.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// What git or ssh said last that tells a person something: git's last `fatal:`, with what the remote said before it.
pub(super) fn git_says(lines: &[String]) -> String {
    let counts = |line: &str| {
        ["remote: Enumerating", "remote: Counting", "remote: Compressing", "remote: Total"].iter().any(|start| line.starts_with(start))
    };
    let tells = |line: &&String| ["ERROR: ", "remote: ", "ssh: "].iter().any(|start| line.starts_with(start)) && !counts(line);
    let clue = lines.iter().rfind(|line| !line.starts_with("fatal: ") && (tells(line) || denies(line)));
    let fatal = lines.iter().rfind(|line| line.starts_with("fatal: "));
    let said: Vec<&str> = clue.into_iter().chain(fatal).map(String::as_str).collect();
    let said = if said.is_empty() { lines.last().map_or("it said nothing", String::as_str).to_owned() } else { said.join("; ") };
    clean(&said, MESSAGE_LIMIT)
}

/// Lines of ssh that have no prefix and say why.
fn denies(line: &str) -> bool {
    ["Permission denied", "Host key verification failed", "Connection "].iter().any(|text| line.contains(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_and_control_characters_are_gone() {
        assert_eq!(clean("\u{1b}[31;1merror:\u{1b}[0m a\u{7}b\r\n\tc \n", 100), "error: ab\n\tc");
        assert_eq!(clean("\u{1b}", 100), "");
        assert_eq!(clean("\u{1b}[", 100), "");
    }

    #[test]
    fn what_is_long_is_cut_between_characters() {
        assert_eq!(cut("äöü", 3), "äöü");
        assert_eq!(cut("äöüß", 3), "äö…");
    }

    #[test]
    fn git_is_quoted_with_its_reason() {
        let says = |lines: &[&str]| git_says(&lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>());
        assert_eq!(
            says(&["Warning: x", "git@h: Permission denied (publickey).", "fatal: Could not read from remote repository.", "and so on"]),
            "git@h: Permission denied (publickey).; fatal: Could not read from remote repository."
        );
        assert_eq!(says(&["fatal: repository 'x' not found"]), "fatal: repository 'x' not found");
        assert_eq!(says(&["odd"]), "odd");
        assert_eq!(says(&[]), "it said nothing");
    }
}
