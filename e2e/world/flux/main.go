// Holds every status of a NixOSHost against Flux's own linter and against kstatus.
//
// Reads objects (metadata and status) as JSON lines from standard input, prints each violation, and ends with 1 if there is any.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/fluxcd/pkg/runtime/conditions"
	"github.com/fluxcd/pkg/runtime/conditions/check"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Stalled outranks Reconciling; Drifted and RebootRequired are about the machine, and may be there with Ready=True.
var polarity = &check.Conditions{NegativePolarity: []string{"Stalled", "Reconciling"}}

// A host is an object as Flux's functions want it.
type host struct {
	unstructured.Unstructured
	conditions []metav1.Condition
}

func (h *host) GetConditions() []metav1.Condition { return h.conditions }

func parse(line []byte) (*host, error) {
	h := &host{}
	if err := h.UnmarshalJSON(line); err != nil {
		return nil, err
	}
	var typed struct {
		Status struct {
			Conditions []metav1.Condition `json:"conditions"`
		} `json:"status"`
	}
	if err := json.Unmarshal(line, &typed); err != nil {
		return nil, err
	}
	h.conditions = typed.Status.Conditions
	return h, nil
}

// violations is what Flux and kstatus have against an object.
func violations(h *host) error {
	checkers := []*check.Checker{check.NewInProgressChecker(nil)}
	// While work goes on the rules for the end of a pass do not hold yet.
	if !conditions.IsReconciling(h) {
		checkers = append(checkers, check.NewChecker(nil, polarity))
	}
	found := kstatus(h)
	for _, checker := range checkers {
		checker.DisableFetch = true
		fail, warn := checker.Check(context.Background(), h)
		found = errors.Join(found, fail, warn)
	}
	return found
}

// kstatus must read the object as the conditions mean it.
func kstatus(h *host) error {
	result, err := status.Compute(&h.Unstructured)
	if err != nil {
		return err
	}
	want := status.CurrentStatus
	switch {
	case h.GetDeletionTimestamp() != nil:
		want = status.TerminatingStatus
	case stale(h):
		want = status.InProgressStatus
	case conditions.IsStalled(h):
		want = status.FailedStatus
	case !conditions.IsReady(h):
		want = status.InProgressStatus
	}
	if result.Status != want {
		return fmt.Errorf("kstatus reads %s (%s), the conditions mean %s", result.Status, result.Message, want)
	}
	return nil
}

func stale(h *host) bool {
	observed, found, _ := unstructured.NestedInt64(h.Object, "status", "observedGeneration")
	return !found || observed != h.GetGeneration()
}

func run() error {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 4<<20)
	checked, wrong := 0, 0
	for lines.Scan() {
		h, err := parse(lines.Bytes())
		if err != nil {
			return fmt.Errorf("line %d: %w", checked+1, err)
		}
		checked++
		if err := violations(h); err != nil {
			wrong++
			fmt.Printf("%s: %v\n    in %s\n", h.GetName(), err, lines.Text())
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	if checked == 0 {
		return errors.New("no status to check")
	}
	fmt.Printf("%d statuses checked, %d of them break a rule\n", checked, wrong)
	if wrong > 0 {
		os.Exit(1)
	}
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "flux-lint:", err)
		os.Exit(2)
	}
}
