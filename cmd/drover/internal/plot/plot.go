// Package plot draws curves as SVG.
package plot

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Point is one measured value.
type Point struct{ X, Y float64 }

// Curve is one panel of a picture.
type Curve struct {
	Title  string
	Points []Point // X above 0
}

// Measures of a panel, in pixels.
const (
	panelWidth, panelHeight  = 380.0, 230.0
	left, right, top, bottom = 52.0, 20.0, 34.0, 36.0
	plotWidth                = panelWidth - left - right
	plotHeight               = panelHeight - top - bottom
)

// Growth draws the curves over the number of workers, two panels in a row. X is
// logarithmic; Y begins at 0, so that what grows with the workers is seen to.
func Growth(curves []Curve) []byte {
	rows := (len(curves) + 1) / 2
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" font-family="sans-serif" font-size="11">`+"\n", 2*panelWidth, float64(rows)*panelHeight)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fff"/>`+"\n")
	for i, c := range curves {
		fmt.Fprintf(&b, `<g transform="translate(%.0f,%.0f)">`+"\n", float64(i%2)*panelWidth, float64(i/2)*panelHeight)
		c.draw(&b)
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	return []byte(b.String())
}

func (c *Curve) draw(b *strings.Builder) {
	fmt.Fprintf(b, `<text x="%.0f" y="20" font-size="13" font-weight="bold" fill="#222">%s</text>`+"\n", left, html.EscapeString(c.Title))
	if len(c.Points) == 0 {
		return
	}
	points := slices.SortedFunc(slices.Values(c.Points), func(a, b Point) int { return int(math.Copysign(1, a.X-b.X)) })
	low, high := math.Log10(points[0].X), math.Log10(points[len(points)-1].X)
	if high == low {
		high = low + 1
	}
	most := 0.0
	for _, p := range points {
		most = max(most, p.Y)
	}
	step := Step(most)
	most = max(step, math.Ceil(most/step-1e-9)*step)
	x := func(v float64) float64 { return left + (math.Log10(v)-low)/(high-low)*plotWidth }
	y := func(v float64) float64 { return top + plotHeight - v/most*plotHeight }
	for v := 0.0; v <= most+step/2; v += step {
		fmt.Fprintf(b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#ddd"/>`+"\n", left, y(v), left+plotWidth, y(v))
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="end" fill="#555">%s</text>`+"\n", left-6, y(v)+4, number(v))
	}
	var path []string
	for _, p := range points {
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="middle" fill="#555">%s</text>`+"\n", x(p.X), top+plotHeight+16, number(p.X))
		fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" fill="#1f6feb"><title>%s: %s</title></circle>`+"\n", x(p.X), y(p.Y), number(p.X), number(p.Y))
		path = append(path, fmt.Sprintf("%.1f,%.1f", x(p.X), y(p.Y)))
	}
	fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="#1f6feb" stroke-width="1.5"/>`+"\n", strings.Join(path, " "))
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="middle" fill="#555">workers</text>`+"\n", left+plotWidth/2, top+plotHeight+31)
}

// Step is the distance of grid lines for values up to most: 1, 2 or 5 times a
// power of ten, so that there are three to six of them.
func Step(most float64) float64 {
	if most <= 0 {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(most/3)))
	for _, m := range []float64{1, 2, 5} {
		if most/(m*unit) <= 6 {
			return m * unit
		}
	}
	return 10 * unit
}

func number(v float64) string { return strconv.FormatFloat(math.Round(v*1e4)/1e4, 'g', -1, 64) }
