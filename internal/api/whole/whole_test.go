package whole

import (
	"encoding/json"
	"testing"
)

func TestNumber(t *testing.T) {
	for text, want := range map[string]struct {
		value int64
		whole bool
	}{
		"0": {0, true}, "50": {50, true}, "-1": {-1, true}, "5.0": {5, true}, "5e3": {5000, true}, "50000000000": {50_000_000_000, true},
		"0.5": {}, "1e300": {}, "1e999": {}, "9223372036854775807": {9223372036854775807, false}, `"50"`: {}, "true": {}, "null": {0, true},
	} {
		var got struct{ N Number }
		if err := json.Unmarshal([]byte(`{"N":`+text+`}`), &got); err != nil {
			t.Errorf("%s cannot be read: %v", text, err)
		}
		if value, whole := got.N.Value(); whole != want.whole || whole && value != want.value {
			t.Errorf("%s is %d, %v; want %d, %v", text, value, whole, want.value, want.whole)
		}
		back, err := json.Marshal(got)
		if text == "null" {
			text = "0"
		}
		if err != nil || string(back) != `{"N":`+text+`}` {
			t.Errorf("%s is written as %s (%v)", text, back, err)
		}
	}
	if Of(-7).String() != "-7" || Written("0.5").String() != "0.5" {
		t.Error(Of(-7))
	}
}
