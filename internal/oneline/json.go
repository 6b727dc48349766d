package oneline

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
)

// OfJSON words an error of encoding/json for people who know JSON and no Go. It gives any
// other error as [Of] does.
func OfJSON(err error) string {
	bad, is := errors.AsType[*json.UnmarshalTypeError](err)
	if !is {
		return Of(err.Error())
	}
	what := "it"
	if bad.Field != "" {
		what = fmt.Sprintf("%q", bad.Field)
	}
	return fmt.Sprintf("%s is %s, where %s belongs", what, article(bad.Value), kindOf(bad.Type))
}

// article names a kind of value of JSON, or such a value, as encoding/json gives it.
func article(value string) string {
	switch value {
	case "array":
		return "a list"
	case "object":
		return "an object"
	case "bool":
		return "true or false"
	case "string":
		return "a text"
	case "number":
		return "a number"
	}
	return "the " + value // number 1.5
}

// kindOf names what JSON has for a type.
func kindOf(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a text"
	case reflect.Pointer:
		return kindOf(t.Elem())
	}
	return "a whole number"
}
