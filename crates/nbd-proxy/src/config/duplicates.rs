//! JSON in which no key stands twice in an object. serde_json takes the last of them, as json-c does: the first, which its
//! author may believe in, means nothing.

use std::{cell::RefCell, fmt};

use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

/// Parses `text`. The second part names the keys that stand twice, with the path to each.
pub(super) fn parse(text: &str) -> serde_json::Result<(Value, Vec<String>)> {
    let twice = RefCell::default();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let root = Node {
        path: String::new(),
        twice: &twice,
    };
    let value = root.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok((value, twice.into_inner()))
}

/// A value that is being read.
struct Node<'a> {
    path: String,
    twice: &'a RefCell<Vec<String>>,
}

impl Node<'_> {
    fn member(&self, key: &str) -> Self {
        let path = match self.path.as_str() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        };
        Self {
            path,
            twice: self.twice,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) =
            elements.next_element_seed(self.member(&values.len().to_string()))?
        {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            let member = self.member(&key);
            if object.contains_key(&key) {
                self.twice.borrow_mut().push(member.path.clone());
            }
            let value = members.next_value_seed(member)?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_serde_json_reads() {
        for text in [
            r#"{"a": [1, -1, 1.5, 1e300, true, null, "\u00e9"], "b": {"a": {}}, "": []}"#,
            "18446744073709551615",
            "[]",
        ] {
            let (value, twice) = parse(text).unwrap();
            assert_eq!(value, serde_json::from_str::<Value>(text).unwrap());
            assert!(twice.is_empty());
        }
        for broken in [
            "",
            "{",
            "{} {}",
            "[1,]",
            "{\"a\": 1 \"b\": 2}",
            &"[".repeat(1000),
        ] {
            assert!(parse(broken).is_err(), "{broken:.20}");
        }
    }

    #[test]
    fn what_stands_twice_is_named_and_the_last_one_counts() {
        let (value, twice) = parse(r#"{"a": 1, "b": [{"c": 1, "c": 2}], "a": 3}"#).unwrap();
        assert_eq!(twice, ["b.0.c", "a"]);
        assert_eq!(value["a"], 3);
        assert_eq!(value["b"][0]["c"], 2);
    }
}
