//! The API reference as Markdown: one table for each object of the schema, in the order in which they are met.

use serde_json::Value;

/// The reference of this CustomResourceDefinition.
pub(crate) fn of(crd: &Value) -> String {
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    ["spec", "status"].map(|name| object(name, &schema[name])).join("\n")
}

/// The table of one object, then those of the objects in it.
fn object(path: &str, schema: &Value) -> String {
    let required: Vec<_> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let fields: Vec<_> = schema["properties"].as_object().into_iter().flatten().collect();
    let row = |(name, field): &(&String, &Value)| {
        let needed = if required.contains(&name.as_str()) { "**required**" } else { "" };
        format!("| {} | {} | {needed} | {} |\n", name_of(path, name, field), kind(field), text(field))
    };
    let table = fields.iter().map(row).collect::<Vec<_>>().concat();
    let about = schema["description"].as_str().map(line).unwrap_or_default();
    let rules = rules(schema).map(|rule| format!("- {rule}\n")).collect::<Vec<_>>().concat();
    let rules = if rules.is_empty() { rules } else { format!("\nRefused by the API server unless:\n\n{rules}") };
    let inner = fields.iter().filter_map(|(name, field)| Some(format!("\n{}", object(&format!("{path}.{name}"), members(field)?))));
    format!("## {path}\n\n{about}\n\n| field | type | | |\n|---|---|---|---|\n{table}{rules}{}", inner.collect::<Vec<_>>().concat())
}

/// The fields of an object, or of the objects in a list.
fn members(field: &Value) -> Option<&Value> {
    [field, &field["items"]].into_iter().find(|schema| schema["properties"].is_object())
}

fn name_of(path: &str, name: &str, field: &Value) -> String {
    let anchor: String = format!("{path}.{name}").to_lowercase().chars().filter(|c| c.is_alphanumeric()).collect();
    if members(field).is_some() { format!("[`{name}`](#{anchor})") } else { format!("`{name}`") }
}

/// The type, with its limits.
fn kind(field: &Value) -> String {
    let values: Vec<_> = field["enum"].as_array().into_iter().flatten().filter_map(Value::as_str).map(|v| format!("`{v}`")).collect();
    let name = field["type"].as_str().unwrap_or("any");
    let name = match (name, &field["items"]["type"], &field["format"]) {
        _ if !values.is_empty() => values.join(", "),
        ("array", item, _) => format!("list of {}s", item.as_str().unwrap_or("value")),
        (_, _, Value::String(format)) if format == "date-time" => "time".to_owned(),
        _ => name.to_owned(),
    };
    let limit = |key: &str, word: &str| field[key].as_f64().map(|limit| format!("{word} {limit}"));
    let limits =
        [limit("minimum", "from"), limit("maximum", "to"), limit("minItems", "from"), limit("maxItems", "to"), limit("maxLength", "up to")];
    let unit = if field["maxLength"].is_number() { " characters" } else { "" };
    let limits = limits.into_iter().flatten().collect::<Vec<_>>().join(" ");
    if limits.is_empty() { name } else { format!("{name}, {limits}{unit}") }
}

/// What a field is for, and what the API server insists on besides its type.
fn text(field: &Value) -> String {
    let about = field["description"].as_str().map(line).unwrap_or_default();
    let own = rules(field).filter(|_| members(field).is_none()).map(|rule| format!(" *{rule}*")).collect::<Vec<_>>().concat();
    format!("{about}{own}").replace('|', "\\|")
}

/// The messages of the validation rules.
fn rules(schema: &Value) -> impl Iterator<Item = String> {
    let rules = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
    rules.filter_map(|rule| rule["message"].as_str().or_else(|| rule["rule"].as_str())).map(line)
}

fn line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('<', "&lt;")
}
