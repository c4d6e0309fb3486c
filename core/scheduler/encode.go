package scheduler

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
)

// appendJSON appends v as JSON that encoding/json reads back to the same value,
// without the fields that are zero: most of a job's are. A record has a fifth of
// the bytes so, and costs a fifth of the time; two are written for every job.
// Fields that are added to a type are written by themselves.
func appendJSON(b []byte, v reflect.Value) ([]byte, error) {
	switch v.Kind() {
	case reflect.String:
		return appendString(b, v.String())
	case reflect.Bool:
		return strconv.AppendBool(b, v.Bool()), nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return strconv.AppendInt(b, v.Int(), 10), nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return strconv.AppendUint(b, v.Uint(), 10), nil
	case reflect.Pointer:
		if v.IsNil() {
			return append(b, "null"...), nil
		}
		return appendJSON(b, v.Elem())
	case reflect.Array:
		if id, ok := v.Interface().(uuid.UUID); ok {
			return append(append(append(b, '"'), id.String()...), '"'), nil
		}
		return nil, fmt.Errorf("encode a record: %v has no form", v.Type())
	case reflect.Slice:
		if data, ok := v.Interface().([]byte); ok {
			return appendMarshalled(b, data)
		}
		return appendList(b, v)
	case reflect.Map:
		return appendMap(b, v)
	case reflect.Struct:
		if t, ok := v.Interface().(time.Time); ok {
			return append(t.AppendFormat(append(b, '"'), time.RFC3339Nano), '"'), nil
		}
		b, err := appendFields(append(b, '{'), v)
		return closed(b, '}'), err
	default:
		return nil, fmt.Errorf("encode a record: %v has no form", v.Type())
	}
}

// closed puts an end in the place of the last comma.
func closed(b []byte, end byte) []byte {
	if len(b) > 0 && b[len(b)-1] == ',' {
		b[len(b)-1] = end
		return b
	}
	return append(b, end)
}

// appendFields appends the fields of a struct that are not zero, each with a
// comma; those of an embedded struct as if they were its own, as encoding/json
// does.
func appendFields(b []byte, v reflect.Value) (_ []byte, err error) {
	for i := range v.NumField() {
		f := v.Field(i)
		if f.IsZero() {
			continue
		}
		switch t := v.Type().Field(i); {
		case t.Anonymous && f.Kind() == reflect.Struct:
			b, err = appendFields(b, f)
		default:
			b = append(append(append(b, '"'), t.Name...), '"', ':')
			if b, err = appendJSON(b, f); err == nil {
				b = append(b, ',')
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return b, nil
}

func appendList(b []byte, v reflect.Value) (_ []byte, err error) {
	b = append(b, '[')
	for i := range v.Len() {
		if b, err = appendJSON(b, v.Index(i)); err != nil {
			return nil, err
		}
		b = append(b, ',')
	}
	return closed(b, ']'), nil
}

// appendMap appends a map in the order of its keys: the same map has the same
// bytes.
func appendMap(b []byte, v reflect.Value) (_ []byte, err error) {
	keys := v.MapKeys()
	slices.SortFunc(keys, func(x, y reflect.Value) int {
		if x.String() < y.String() {
			return -1
		}
		return 1
	})
	b = append(b, '{')
	for _, k := range keys {
		if b, err = appendString(b, k.String()); err != nil {
			return nil, err
		}
		if b, err = appendJSON(append(b, ':'), v.MapIndex(k)); err != nil {
			return nil, err
		}
		b = append(b, ',')
	}
	return closed(b, '}'), nil
}

// appendString appends what needs no escape as it is; nearly all does not.
func appendString(b []byte, s string) ([]byte, error) {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' {
			return appendMarshalled(b, s)
		}
	}
	return append(append(append(b, '"'), s...), '"'), nil
}

func appendMarshalled(b []byte, v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode a record: %w", err)
	}
	return append(b, data...), nil
}
