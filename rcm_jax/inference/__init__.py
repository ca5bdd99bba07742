"""A finished model beside a microscope: bundle, predictor, interpretation, report."""
