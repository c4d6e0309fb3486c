package plot_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"testing"

	"github.com/droverhq/drover/cmd/drover/internal/plot"
)

func TestStepsMakeThreeToSixLines(t *testing.T) {
	t.Parallel()
	for most, want := range map[float64]float64{0: 1, 1: 0.2, 3: 1, 6: 1, 7: 2, 29: 5, 1000: 200, 0.04: 0.01} {
		if got := plot.Step(most); got < want*0.999 || got > want*1.001 {
			t.Errorf("up to %v: steps of %v, want %v", most, got, want)
		}
	}
}

func TestAPictureIsWellFormedAndHasEveryPoint(t *testing.T) {
	t.Parallel()
	data := plot.Growth([]plot.Curve{
		{Title: "a < b", Points: []plot.Point{{X: 100, Y: 2}, {X: 10, Y: 1}}},
		{Title: "one", Points: []plot.Point{{X: 10, Y: 0}}},
		{Title: "none"},
	})
	points := 0
	for d := xml.NewDecoder(bytes.NewReader(data)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "circle" {
			points++
		}
	}
	if points != 3 || bytes.Contains(data, []byte("NaN")) || bytes.Contains(data, []byte("Inf")) {
		t.Errorf("%d of 3 points in\n%s", points, data)
	}
}
