package bulk_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/droverhq/drover/cmd/drover/internal/bulk"
	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// full has every field set.
func full(m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.IsMap():
			value := protoreflect.ValueOfString("v")
			if f.MapValue().Kind() == protoreflect.BytesKind {
				value = protoreflect.ValueOfBytes([]byte("v"))
			}
			m.Mutable(f).Map().Set(protoreflect.ValueOfString("k").MapKey(), value)
		case f.IsList() && f.Kind() == protoreflect.StringKind:
			m.Mutable(f).List().Append(protoreflect.ValueOfString("a{}"))
		case f.IsList():
			m.Mutable(f).List().Append(protoreflect.ValueOfInt32(3))
		case f.Message() != nil:
			full(m.Mutable(f).Message())
		case f.Kind() == protoreflect.StringKind:
			m.Set(f, protoreflect.ValueOfString("s"))
		case f.Kind() == protoreflect.BytesKind:
			m.Set(f, protoreflect.ValueOfBytes([]byte("b")))
		case f.Kind() == protoreflect.BoolKind:
			m.Set(f, protoreflect.ValueOfBool(true))
		case f.Kind() == protoreflect.EnumKind:
			m.Set(f, protoreflect.ValueOfEnum(1))
		case f.Kind() == protoreflect.Int32Kind:
			m.Set(f, protoreflect.ValueOfInt32(4))
		case f.Kind() == protoreflect.Uint32Kind:
			m.Set(f, protoreflect.ValueOfUint32(5))
		case f.Kind() == protoreflect.Int64Kind:
			m.Set(f, protoreflect.ValueOfInt64(6))
		default:
			m.Set(f, protoreflect.ValueOfUint64(7))
		}
	}
}

// TestFillChangesWhatAnItemChangesAndNothingElse also for fields that are added
// to the request later.
func TestFillChangesWhatAnItemChangesAndNothingElse(t *testing.T) {
	t.Parallel()
	template := &droverv1.StartJobRequest{}
	full(template.ProtoReflect())
	before := proto.CloneOf(template)
	want := proto.CloneOf(template)
	want.Args = []string{"a7 x"}
	want.Env["DROVER_ARRAY_INDEX"] = "7"
	want.RequestId = "s/7"
	if diff := cmp.Diff(want, bulk.Fill(template, "7 x", "7"), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if !proto.Equal(before, template) {
		t.Error("the template was changed")
	}
}

func TestEveryMarkIsReplacedAndNothingIsInterpreted(t *testing.T) {
	t.Parallel()
	template := &droverv1.StartJobRequest{Name: "n-{}", Path: "{}.sh", Args: []string{"{}", "x{}y{}z", "{ }", "$1", "{}{}", ""}}
	got := bulk.Fill(template, `$HOME "q" {} \n`, "1")
	want := []string{`$HOME "q" {} \n`, `x$HOME "q" {} \ny$HOME "q" {} \nz`, "{ }", "$1", `$HOME "q" {} \n$HOME "q" {} \n`, ""}
	if diff := cmp.Diff(want, got.GetArgs()); diff != "" {
		t.Error(diff)
	}
	if got.GetName() != `n-$HOME "q" {} \n` || got.GetPath() != "{}.sh" {
		t.Errorf("name %q, path %q", got.GetName(), got.GetPath())
	}
	if !bulk.Marked([]string{"a", "b{}"}) || bulk.Marked([]string{"{", "}"}) {
		t.Error("Marked")
	}
}
