//! YAML as JSON, with merge keys (`<<`) merged as Compose does.

use serde_json::{Map, Value};
use yaml_rust2::{Yaml, YamlLoader};

/// Parses a text with one document.
#[track_caller]
pub(super) fn parse(text: &str) -> Value {
    let documents = YamlLoader::load_from_str(text).unwrap_or_else(|error| panic!("no YAML: {error}"));
    let [document] = documents.as_slice() else { panic!("{} documents", documents.len()) };
    json(document)
}

fn json(yaml: &Yaml) -> Value {
    match yaml {
        Yaml::Null => Value::Null,
        Yaml::Boolean(flag) => (*flag).into(),
        Yaml::Integer(number) => (*number).into(),
        Yaml::Real(number) => number.parse::<f64>().unwrap().into(),
        Yaml::String(text) => text.clone().into(),
        Yaml::Array(elements) => elements.iter().map(json).collect(),
        Yaml::Hash(entries) => {
            let mut merged = Map::new();
            let mut own = Map::new();
            for (key, value) in entries {
                let key = key.as_str().unwrap_or_else(|| panic!("{key:?} is no text"));
                match (key, json(value)) {
                    ("<<", Value::Object(base)) => merged.extend(base),
                    (_, value) => drop(own.insert(key.to_owned(), value)),
                }
            }
            merged.extend(own);
            merged.into()
        }
        Yaml::Alias(_) | Yaml::BadValue => panic!("an alias that leads nowhere"),
    }
}

#[test]
fn a_mapping_overrides_what_is_merged_into_it() {
    let text = "base: &base {a: 1, b: [x]}\nderived:\n  b: no\n  <<: *base\n  c: ~\n";
    assert_eq!(parse(text)["derived"], serde_json::json!({ "a": 1, "b": "no", "c": null }));
}
