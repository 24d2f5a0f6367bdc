//! The one place where an argument list becomes a line for a shell.
//!
//! SSH carries a command as one string, which the login shell of the user splits again. What is written here reads the
//! same in POSIX shells and in fish: a backslash, which fish also obeys between single quotes, stays outside of them.

/// A word that no shell can be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an argument holds a NUL character, which no command line can carry: {word:?}")]
pub struct QuoteError {
    /// The word.
    pub word: String,
}

/// The line that a shell splits into exactly `words`.
pub(super) fn line<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<String, QuoteError> {
    let mut line = String::new();
    for word in words {
        if word.contains('\0') {
            return Err(QuoteError { word: word.to_owned() });
        }
        if !line.is_empty() {
            line.push(' ');
        }
        if is_plain(word) {
            line.push_str(word);
        } else {
            quote(word, &mut line);
        }
    }
    Ok(line)
}

/// Whether every shell takes `word` as it stands. With an equals sign only behind a dash or a slash: `A=b` in front of
/// a command is an assignment, and zsh looks `=b` up in PATH.
fn is_plain(word: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(&b);
    !word.is_empty() && word.bytes().all(plain) && (!word.contains('=') || word.starts_with(['-', '/']))
}

fn quote(word: &str, line: &mut String) {
    line.push('\'');
    for character in word.chars() {
        match character {
            '\'' => line.push_str(r"'\''"),
            '\\' => line.push_str(r"'\\'"),
            other => line.push(other),
        }
    }
    line.push('\'');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_words_stay_as_they_are() {
        assert_eq!(line(["nix-store", "--add-root=/x", "a@b", "1:2,3%+"]).unwrap(), "nix-store --add-root=/x a@b 1:2,3%+");
    }

    #[test]
    fn what_a_shell_would_read_is_quoted() {
        assert_eq!(line(["a b", "", "~", "A=b", "=ls", "$(x)"]).unwrap(), "'a b' '' '~' 'A=b' '=ls' '$(x)'");
        assert_eq!(line([r"it's \n"]).unwrap(), r"'it'\''s '\\'n'");
    }

    #[test]
    fn a_nul_character_is_refused() {
        assert!(line(["a\0b"]).is_err());
    }

    /// What `shell` makes of the words, as it hands them to printf.
    #[expect(clippy::disallowed_methods, reason = "a shell is the only judge of quoting")]
    fn read_back(shell: &[&str], words: &[String]) -> Option<Vec<u8>> {
        let all = ["printf", "%s\\0"].into_iter().chain(words.iter().map(String::as_str));
        let output = std::process::Command::new(shell[0]).args(&shell[1..]).arg("-c").arg(line(all).unwrap()).output().ok()?;
        output.status.success().then_some(output.stdout)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_shell_reads_the_words_back(words in prop::collection::vec("[^\0]{0,12}|[ -~\n\t]{0,12}|[\\\\'\"$`!=~ ]{0,6}", 1..6)) {
            let expected: Vec<u8> = words.iter().flat_map(|w| [w.as_bytes(), b"\0"].concat()).collect();
            prop_assert_eq!(read_back(&["/bin/sh"], &words), Some(expected.clone()));
            for shell in [&["bash"][..], &["dash"], &["busybox", "sh"], &["zsh"], &["fish"]] {
                if let Some(read) = read_back(shell, &words) {
                    prop_assert_eq!(&read, &expected, "{:?}", shell);
                }
            }
        }
    }
}
