//! Every link in the project's Markdown leads somewhere: to a file that is there, and to a heading in it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Directories that hold nothing of the project.
const FOREIGN: [&str; 3] = ["target", "node_modules", "testdata"];

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap();
    let mut pages = BTreeMap::new();
    read(&root, &mut pages);
    let (mut broken, mut checked) = (Vec::new(), 0);
    for (page, text) in &pages {
        for target in links(&prose(text)) {
            checked += 1;
            if let Err(why) = check(page, &target, &pages) {
                broken.push(format!("{}: {target}: {why}", page.strip_prefix(&root).unwrap().display()));
            }
        }
    }
    assert!(checked > 20, "only {checked} links were found");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn what_leads_nowhere_is_found() {
    let page = PathBuf::from("/p/a.md");
    let pages = BTreeMap::from([(page.clone(), "# One *two*: `three`\n\n# x\n# x\n```\n# no\n[a](b)\n```\n".to_owned())]);
    for good in ["https://example.org", "#one-two-three", "a.md#x-1"] {
        check(&page, good, &pages).unwrap();
    }
    for bad in ["#two", "b.md", "a.md#no", "a.md#x-2"] {
        check(&page, bad, &pages).unwrap_err();
    }
    assert_eq!(links(&prose(&pages[&page])), Vec::<String>::new());
    assert_eq!(links("![x](a.png) and [b\nc](d.md#e \"t\"), `[not](this)`\n[r]: f.md\n"), ["a.png", "d.md#e", "f.md"]);
}

fn read(directory: &Path, pages: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if entry.file_type().unwrap().is_dir() {
            if !name.starts_with('.') && !FOREIGN.contains(&name.as_str()) {
                read(&path, pages);
            }
        } else if path.extension().is_some_and(|extension| extension == "md") {
            pages.insert(path.clone(), fs::read_to_string(&path).unwrap());
        }
    }
}

/// A page without its blocks of code.
fn prose(text: &str) -> String {
    let mut inside = false;
    let line = |line: &&str| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !fence && !inside
    };
    text.lines().filter(line).fold(String::new(), |text, line| text + line + "\n")
}

/// What is linked to: `[text](target "title")`, `![text](target)` and `[name]: target`, none of it between backticks.
fn links(prose: &str) -> Vec<String> {
    let text: String = prose.split('`').step_by(2).collect::<Vec<_>>().join("code");
    let inline = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    let named = text.lines().filter(|line| line.starts_with('[')).filter_map(|line| line.split_once("]: ")).map(|(_, target)| target);
    inline.chain(named).filter_map(|target| target.split_whitespace().next()).map(str::to_owned).collect()
}

fn check(page: &Path, target: &str, pages: &BTreeMap<PathBuf, String>) -> Result<(), String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return Ok(());
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let file = if file.is_empty() { page.to_owned() } else { normal(&page.parent().unwrap().join(file)) };
    let Some(text) = pages.get(&file) else {
        return if anchor.is_empty() && file.exists() { Ok(()) } else { Err("there is no such file".to_owned()) };
    };
    if anchor.is_empty() || anchors(text).contains(anchor) { Ok(()) } else { Err("there is no such heading".to_owned()) }
}

/// Without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut path, part| {
        match part {
            std::path::Component::ParentDir => drop(path.pop()),
            std::path::Component::CurDir => {}
            part => path.push(part),
        }
        path
    })
}

/// What forges make of the headings of a page: lower case, spaces become hyphens, punctuation goes; a second one of the same is numbered.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let prose = prose(text);
    for heading in prose.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim()) {
        let kept = heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
        let anchor = kept.replace(' ', "-");
        let mut names = std::iter::once(anchor.clone()).chain((1..).map(|n| format!("{anchor}-{n}")));
        let name = names.find(|name| !anchors.contains(name)).unwrap();
        anchors.insert(name);
    }
    anchors
}
