"""What people read of a study.

terminal            what is shown on a terminal
overview            all studies at a glance
progress            how far a study is
measurements        all measurements as a table: CSV, Parquet, JSON
programs            a study as JSON, for programs
printing            the way of everything printed: text commands no terminal
words               numbers and findings in words
confirmation_table  the table of a confirmation
report              all that a study found as one HTML file
page                the report's page
axes                what its figures have in common
checks              the checks of the winner in it
audit               what a larger network says, in it
ranks               the ranks of an audit in words
search              the search in the report
response_model      the response over the search box that a model expects
figures_search      figures of the search and of the response
figures_arms        figures of densities, confirmation and calibration
"""
