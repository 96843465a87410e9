package webhook

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
)

// converts posts a ConversionReview for objects.
func converts(t *testing.T, desired string, objects ...string) *apiextensionsv1.ConversionResponse {
	t.Helper()
	body := `{"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "request": {"uid": "u1", "desiredAPIVersion": "` + desired + `", "objects": [` + strings.Join(objects, ",") + `]}}`
	answer := httptest.NewRecorder()
	request := httptest.NewRequestWithContext(t.Context(), http.MethodPost, PathConvert, strings.NewReader(body))
	request.Header.Set("Content-Type", "application/json")
	newHandler(t, cache(namespaces()), nil).ServeHTTP(answer, request)
	var review apiextensionsv1.ConversionReview
	if err := json.Unmarshal(answer.Body.Bytes(), &review); err != nil || answer.Code != http.StatusOK || review.Response == nil {
		t.Fatalf("status %d, body %s: %v", answer.Code, answer.Body, err)
	}
	if review.Response.UID != "u1" || review.APIVersion != "apiextensions.k8s.io/v1" || review.Kind != "ConversionReview" {
		t.Errorf("not an answer to the request: %s", answer.Body)
	}
	return review.Response
}

func TestConvert(t *testing.T) {
	flat := `{"apiVersion":"specs.smi-spec.io/v1alpha1","kind":"HTTPRouteGroup","metadata":{"name":"a","namespace":"b","generation":7},"matches":[{"name":"c"}]}`
	deep := `{"apiVersion":"specs.smi-spec.io/v1alpha4","kind":"HTTPRouteGroup","metadata":{"generation":7,"name":"a","namespace":"b"},"spec":{"matches":[{"name":"c"}]}}`
	got := converts(t, "specs.smi-spec.io/v1alpha4", flat, flat)
	if got.Result.Status != "Success" || len(got.ConvertedObjects) != 2 || string(got.ConvertedObjects[1].Raw) != deep {
		t.Errorf("got %+v", got)
	}
	if got := converts(t, "specs.smi-spec.io/v1alpha4"); got.Result.Status != "Success" || len(got.ConvertedObjects) != 0 {
		t.Errorf("of nothing: %+v", got)
	}
	for name, c := range map[string]struct{ desired, object, says string }{
		"another group":   {"access.smi-spec.io/v1alpha3", flat, "it is of group specs.smi-spec.io"},
		"no such version": {"specs.smi-spec.io/v1", flat, `convert HTTPRouteGroup b/a from v1alpha1 to v1: there is no version "v1"`},
		"not an object":   {"specs.smi-spec.io/v1alpha4", `{"a": 1}`, "decode object"},
		"not a version":   {"a/b/c", flat, "desired version"},
	} {
		t.Run(name, func(t *testing.T) {
			got := converts(t, c.desired, flat, c.object)
			if got.Result.Status != "Failure" || !strings.Contains(got.Result.Message, c.says) || len(got.ConvertedObjects) != 0 {
				t.Errorf("got %+v, want a failure that says %q and no object", got, c.says)
			}
		})
	}
}

func TestConvertWantsAReview(t *testing.T) {
	handler := newHandler(t, cache(namespaces()), nil)
	for name, body := range map[string]string{
		"an admission review": `{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {}}`,
		"no request":          `{"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview"}`,
		"no JSON":             `{`,
	} {
		answer := httptest.NewRecorder()
		request := httptest.NewRequestWithContext(t.Context(), http.MethodPost, PathConvert, strings.NewReader(body))
		request.Header.Set("Content-Type", "application/json")
		handler.ServeHTTP(answer, request)
		if answer.Code != http.StatusBadRequest {
			t.Errorf("%s: status %d: %s", name, answer.Code, answer.Body)
		}
	}
}
